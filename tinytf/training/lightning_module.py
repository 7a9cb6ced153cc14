"""The LightningModule: what one step does, and nothing about files, flags or trackers."""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch
from jsonargparse import lazy_instance  # type: ignore[attr-defined]
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.utils.checkpoint import checkpoint
from torchmetrics import SumMetric

from tinytf.data.windows import IGNORE_INDEX
from tinytf.errors import RunError, UserError
from tinytf.model import KVCache, Transformer, TransformerConfig
from tinytf.training.attention import choose_attention, choose_unembedding
from tinytf.training.distributed.dtensor import clip_by_norm, local_shards, total_norm
from tinytf.training.distributed.fsdp import shard_model
from tinytf.training.loss import mean_loss, token_losses
from tinytf.training.optim.groups import freeze as freeze_parameters
from tinytf.training.optim.groups import parameter_groups
from tinytf.training.optim.muon import MuonAdamW
from tinytf.training.optim.schedules import Linear, Schedule
from tinytf.weights.adapter import AdapterConfig, attach_adapter, refuse_adapter_with
from tinytf.weights.base import open_base
from tinytf.weights.checkpoint import refuse_other_base

Batch = tuple[Tensor, ...]
"""(tokens, targets) or (tokens, targets, positions), ``[batch, seq]`` each, int64."""

SUM_OVER = 4096
"""Targets: sums of losses over this have the size of a mean, as float16's gradient scaler expects."""

log = logging.getLogger(__name__)


class LanguageModel(LightningModule):
    """Trains a `Transformer` to predict the next token.

    It trains with any data module or loader whose batches are (tokens, targets), both ``[batch, seq]`` of int64;
    targets of -100 are ignored. A third tensor, positions, says where in a row documents begin: attention stays inside
    of each, and a step's gradient is that of the mean over all its targets, however they are spread. Its weights are
    `model`, on the CPU and in float32 until a Trainer moves them.
    ``LanguageModel.load_from_checkpoint("best.ckpt")`` rebuilds it from a checkpoint alone; optimizer, schedule and
    compile are the defaults again unless given to it.

    Args:
        optimizer: class of the optimizer, with its arguments: any of torch.optim, or tinytf.training.MuonAdamW.
        schedule: class of the learning-rate schedule, with its arguments: Linear, Cosine or Constant, or any of
            torch.optim.lr_scheduler, which steps at each optimizer step (ReduceLROnPlateau at each validation).
        weight_decay_on: what the optimizer's weight decay applies to: the blocks' matrices, or all parameters.
        compile: torch.compile the blocks; auto does if the run is long enough to earn the compile time back, which the
            command line knows: from Python auto does not.
        activation_checkpointing: keep only the input of each block and compute the rest again in the backward pass:
            a quarter slower, for a fraction of the memory.
        on_nonfinite: at a loss or gradient that is not finite, stop the run or skip that optimizer step.
        freeze: name patterns of the parameters that are not trained, such as embed_tokens.* or layers.0.*; null trains
            all.
        seed: of the dropout; the command line sets it from seed_everything.
        bytes_per_token: UTF-8 bytes that a token of each split stands for on average, such as ``{"val": 4.1}``;
            with it, ``val/bits_per_byte`` is logged.
        base: pretrained model to start from: a Hugging Face folder, hf://owner/name (also with ?revision=COMMIT), a
            checkpoint or run of tinytf, or a bundle. Its sizes and its tokenizer are the model's; a setting that
            contradicts them is refused. dropout is free, max_seq_len may be shorter, or longer with a rope_scaling.
        adapter: train an adapter (LoRA) beside the base, whose weights stay as they are; null trains the model. A
            checkpoint then holds the adapter alone.
        config: the arguments of `TransformerConfig`; with a base, those that differ from its own.
    """

    def __init__(
        self,
        optimizer: Callable[[Iterable], Optimizer] = MuonAdamW,  # type: ignore[type-arg]
        schedule: Schedule | Callable[[Optimizer], LRScheduler] = lazy_instance(Linear),  # noqa: B008
        weight_decay_on: Literal["matrices", "all"] = "matrices",
        compile: Literal["auto"] | bool = "auto",
        activation_checkpointing: bool = False,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        freeze: Sequence[str] | None = None,
        seed: int = 0,
        bytes_per_token: dict[str, float] | None = None,
        base: str | None = None,
        adapter: AdapterConfig | None = None,
        **config: Any,
    ) -> None:
        super().__init__()
        # lazy_instance is how jsonargparse knows a default class. `config` and not named arguments: it follows
        # ``**config`` to TransformerConfig's fields, so that ``model.d_model`` is declared there alone.
        opened = open_base(base) if base else None
        self.config = opened.config_with(config) if opened else TransformerConfig(**config)
        self.base_identity = opened.identity if opened else None
        # A function of our own, because a copy of a function is itself: callbacks that average weights copy the module,
        # and jsonargparse's partial holds on to the whole command line.
        self.build_optimizer: Callable[[Iterable[Any]], Optimizer] = lambda groups: optimizer(groups)
        self.schedule = schedule
        self.plateau: ReduceLROnPlateau | None = None
        self.weight_decay_on = weight_decay_on
        self.compile_blocks = compile is True
        self.activation_checkpointing = activation_checkpointing
        self.on_nonfinite = on_nonfinite
        self.seed = seed
        self.bytes_per_token = bytes_per_token or {}
        self.model = opened.build(self.config) if opened else Transformer(self.config)
        self.frozen = list(freeze or ())
        freeze_parameters(self.model, self.frozen)
        # Of a checkpoint's hyperparameters it is a dict.
        self.adapter = AdapterConfig.from_mapping(adapter) if isinstance(adapter, dict) else adapter
        if self.adapter:
            refuse_adapter_with(base=opened is not None, freeze=self.frozen)
            attach_adapter(self.model, self.adapter)
        self.loss_sum: SumMetric | None = None
        self.token_count: SumMetric | None = None
        self.group_settings: list[dict[str, Any]] = []
        self.grad_norm = torch.zeros(())
        self.micro_losses: list[Tensor] = []
        self.micro_counts: list[Tensor] = []
        self.skipped_steps = 0
        self.log_to_loggers = True
        """The journal callback sets it to False: it writes rows to the loggers itself, before the step's checkpoint."""
        self._prepared = self._sharded = False

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits ``[batch, seq, vocab_size]`` of ids ``[batch, seq]``; see `Transformer.forward`."""
        logits: Tensor = self.model(tokens, cache)
        return logits

    # -- building ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Swap in what is fast or small on the Trainer's device; parameters and their names stay."""
        if self._prepared:  # A second fit, or the validation after one.
            return
        self._prepared = True
        if self.trainer.precision == "64-true":
            # Lightning converts the module after it has restored the weights, which would be rounded on the way.
            self.double()
        choose_attention(self.model, self.trainer.strategy.root_device, self.trainer.precision)
        if self.device_mesh is None:  # FSDP's weights are no plain tensors.
            choose_unembedding(self.model, self.trainer.strategy.root_device)
        for block in self.model.layers:
            if self.activation_checkpointing:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
            if self.compile_blocks:
                # Not torch.compile(block): that wraps the module, and checkpoints would have its prefix in their keys.
                block.compile()

    def configure_model(self) -> None:
        """Shard the weights if the strategy has a mesh; Lightning calls it after `setup`, every time."""
        if self.device_mesh is not None and self.adapter:
            raise UserError("model.adapter: fsdp2 shards no adapter; use the strategy ddp")
        if self.device_mesh is not None and not self._sharded:
            self._sharded = True
            shard_model(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer(parameter_groups(self.model, self.weight_decay_on == "all"))
        # Before the scheduler, whose constructor multiplies each group's lr by its first factor.
        self.group_settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        scheduler = self._scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            # `_finish_evaluation` steps it. Lightning would after the checkpoint of the validation, so that a run
            # resumed from there would leave one step out: here it finds no step to do it at.
            self.plateau = scheduler
            config |= {"monitor": self._monitored(scheduler), "frequency": sys.maxsize}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _scheduler(self, optimizer: Optimizer) -> LRScheduler:
        schedule = self.schedule
        if not isinstance(schedule, Schedule):
            return schedule(optimizer)
        total_steps = self._total_steps()
        return LambdaLR(optimizer, lambda step: schedule.factor(step, total_steps))

    def _monitored(self, plateau: ReduceLROnPlateau) -> str:
        """What it looks at: Lightning's subclass has an argument for that."""
        name = str(getattr(plateau, "monitor", "val/loss"))
        known = ["val/loss", "val/perplexity", *(["val/bits_per_byte"] if "val" in self.bytes_per_token else [])]
        if name not in known:
            raise UserError(f"model.schedule.monitor is {name}, but must be {' or '.join(known)}")
        return name

    def _total_steps(self) -> int:
        """Optimizer steps of the whole run; a Trainer that counts epochs has no max_steps."""
        return self.trainer.max_steps if self.trainer.max_steps > 0 else int(self.trainer.estimated_stepping_batches)

    # -- training ----------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Let the settings in force now win over those that came back with the optimizer's state.

        Not under a scheduler of torch, which computes each rate from the one before.
        """
        scheduler = self.lr_schedulers()
        optimizer = self.optimizers(use_pl_optimizer=False)
        # A subclass may configure optimizers of its own, and a tuner puts its scheduler in the place of this one.
        if not self.group_settings or not isinstance(self.schedule, Schedule) or not isinstance(scheduler, LambdaLR):
            return
        assert isinstance(optimizer, Optimizer)
        factor = self.schedule.factor(scheduler.last_epoch, self._total_steps())
        scheduler.base_lrs = [settings["lr"] for settings in self.group_settings]
        for group, settings in zip(optimizer.param_groups, self.group_settings, strict=True):
            group.update(settings, initial_lr=settings["lr"], lr=settings["lr"] * factor)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout is a function of (seed, batch, rank): a resumed run drops what an unbroken one would have dropped.
        torch.manual_seed(dropout_seed(self.seed, self.trainer.fit_loop.total_batch_idx, self.trainer.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = mean_loss(self.model, *batch)
        self.micro_losses.append(loss.detach())
        if len(batch) < 3:
            return loss
        # Of packed examples some micro-batches have fewer targets than others. Lightning averages over micro-batches
        # and processes: each gives its sum over a constant, and `_weigh_gradients` puts the step's count in its place.
        count = (batch[1] != IGNORE_INDEX).sum()
        self.micro_counts.append(count)
        return loss * (count / SUM_OVER)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning would, with the norm measured once: for the clipping, the log and the check."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.micro_counts:
            self._weigh_gradients(gradients)
        self.grad_norm = total_norm(gradients)
        if not self._finite():
            self._on_nonfinite(optimizer)
        elif gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_by_norm(gradients, gradient_clip_val, self.grad_norm)

    def _weigh_gradients(self, gradients: list[Tensor]) -> None:
        """From the mean over micro-batches and processes of sums over a constant to the mean over all targets."""
        counts = self._over_processes(torch.stack(self.micro_counts).sum())
        averaged = self.trainer.accumulate_grad_batches * self.trainer.world_size
        torch._foreach_mul_(local_shards(gradients), averaged * SUM_OVER / counts)

    def _over_processes(self, total: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(total, reduce_op="sum") if self.trainer.world_size > 1 else total

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        losses, self.micro_losses = self.micro_losses, []
        counts, self.micro_counts = self.micro_counts, []
        step = self.trainer.global_step + 1  # Lightning counts the step after this hook.
        if step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_step(torch.stack(losses), counts)

    def _log_step(self, losses: Tensor, counts: list[Tensor]) -> None:
        if counts:
            weights = torch.stack(counts)
            loss = self._over_processes((losses * weights).sum()) / self._over_processes(weights.sum())
        else:
            loss = losses.mean()
            if self.trainer.world_size > 1:
                loss = self.trainer.strategy.reduce(loss, reduce_op="mean")
        (optimizer, *_) = self.trainer.optimizers
        # Those of an optimizer that a subclass configures may have no names, and one of frozen parameters has none.
        rates = {group.get("name"): group["lr"] for group in optimizer.param_groups if group["params"]}
        lr = rates.get("embedding", next(iter(rates.values())))
        values = {"train/loss": loss, "train/perplexity": loss.exp(), "train/grad_norm": self.grad_norm, "lr": lr}
        if rates.get("matrices", lr) != lr:  # MuonAdamW's muon_lr.
            values["muon_lr"] = rates["matrices"]
        if self.skipped_steps:
            values["train/skipped_steps"] = float(self.skipped_steps)
        self.log_dict(values, logger=self.log_to_loggers)

    # -- what is not finite ------------------------------------------------------------------------------------

    def _finite(self) -> bool:
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return True  # float16's gradient scaler meets infinities by design, and skips them itself.
        # A norm is finite only if every gradient is, and a loss that is not finite has no finite gradient. On a GPU
        # this waits for the backward pass in each step: the price of stopping before the weights are overwritten.
        return bool(torch.isfinite(self.grad_norm))

    def _on_nonfinite(self, optimizer: Optimizer) -> None:
        step = self.trainer.global_step + 1
        batch = self.trainer.fit_loop.total_batch_idx
        losses = ", ".join(f"{loss.item():.4g}" for loss in self.micro_losses)
        what = f"step {step}, batch {batch}: the loss is {losses} and the gradient norm {self.grad_norm.item():.4g}"
        if self.on_nonfinite == "stop":
            raise NonFiniteError(f"{what}; stopped before the optimizer step", self.micro_losses)
        self.skipped_steps += 1
        log.warning("%s; the optimizer step is skipped", what)
        # Every torch optimizer passes over a parameter without a gradient: the step changes nothing.
        optimizer.zero_grad(set_to_none=True)

    # -- evaluating --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    def on_test_epoch_start(self) -> None:
        self._start_evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Each token's loss, for a look at where the model is surprised."""
        with eager():
            losses = token_losses(self.model, *batch)
        return {"losses": losses, "targets": batch[1]}

    def _start_evaluation(self) -> None:
        # A float32 sum over 10^8 tokens drifts in the sixth digit; MPS has no float64. Two sums, not a weighted
        # MeanMetric: torchmetrics 1.9 leaves NaN losses out of its mean, or with "disable" forgets the weights.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.loss_sum, self.token_count = (SumMetric(nan_strategy="disable") for _ in range(2))
        for metric in (self.loss_sum, self.token_count):
            metric.to(self.device).set_dtype(dtype)

    def _evaluate(self, batch: Batch) -> None:
        assert self.loss_sum is not None
        assert self.token_count is not None
        with eager():
            losses = token_losses(self.model, *batch)
        self.loss_sum.update(losses)
        self.token_count.update(batch[1] != IGNORE_INDEX)

    def _finish_evaluation(self, split: str) -> None:
        """Log loss (nats per token), perplexity and bits per byte over the whole split and all processes."""
        assert self.loss_sum is not None
        assert self.token_count is not None
        loss = (self.loss_sum.compute() / self.token_count.compute()).float()
        values = {f"{split}/loss": loss, f"{split}/perplexity": loss.exp()}
        if split in self.bytes_per_token:
            # The same unit under every tokenizer, so that char and BPE compare.
            values[f"{split}/bits_per_byte"] = loss / (math.log(2) * self.bytes_per_token[split])
        # In validate and test, Lightning prints what is logged to loggers as a table.
        self.log_dict(values, logger=self.log_to_loggers or self.trainer.state.fn != "fit")
        self.loss_sum = self.token_count = None
        trains = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        if self.plateau is not None and split == "val" and trains:
            self.plateau.step(values[self._monitored(self.plateau)].item())

    # -- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped_steps"] = self.skipped_steps
        # What load_from_checkpoint passes to __init__. Not by save_hyperparameters: that would store the optimizer and
        # the schedule as objects, and a checkpoint holds tensors and plain types only.
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = {
            **asdict(self.config),
            "weight_decay_on": self.weight_decay_on,
            "activation_checkpointing": self.activation_checkpointing,
            "on_nonfinite": self.on_nonfinite,
            "freeze": self.frozen,
            "adapter": self.adapter.plain() if self.adapter else None,
            "seed": self.seed,
            "bytes_per_token": self.bytes_per_token,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_steps = int(checkpoint.get("skipped_steps", 0))
        known = checkpoint.get("tinytf", {}).get("base")
        if self.adapter and self.base_identity:
            refuse_other_base(self.base_identity, known or {}, "that is resumed")
        # A checkpoint has the weights, but for an adapter's base: what they began from is not opened again.
        self.base_identity = known


class NonFiniteError(RunError):
    """The loss or the gradient is not finite.

    Args:
        message: which step, which batch.
        losses: of the step's micro-batches, scalars.
    """

    def __init__(self, message: str, losses: list[Tensor]) -> None:
        super().__init__(message)
        self.losses = losses


def dropout_seed(seed: int, batch: int, rank: int) -> int:
    """63 bits that depend on all three and on nothing else, the same on every platform."""
    digest = hashlib.blake2b(f"{seed}/{batch}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def eager() -> AbstractContextManager[None]:
    """Run compiled blocks as they are written: an evaluation is the same number in every command that makes it."""
    return torch.compiler.set_stance("force_eager")
