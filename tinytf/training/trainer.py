"""Lightning's Trainer with steps as the only unit, and without the settings that an endless stream gives no meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import WeightAveraging

from tinytf.errors import UserError, require_at_least
from tinytf.training.distributed import fsdp  # noqa: F401 - registers trainer.strategy fsdp2
from tinytf.training.distributed.launcher import watch_processes
from tinytf.training.hardware import (
    MatmulPrecision,
    Precision,
    fastest_matmul,
    fastest_precision,
    training_device,
)
from tinytf.training.refused_callbacks import refuse_averaging, refuse_callbacks, refuse_equal_keys

MOST_READINGS = 16
"""Readings of a text after which another one teaches little. Muennighoff et al. 2023 (arXiv:2305.16264) fit the worth
of the Rth repetition as exp(-R / 15.4) of new text: the fourth is nearly as good, the 16th a third as good, the 40th
worth nothing. Measured here, 0.4M parameters on 54,000 characters at a constant rate: val/loss is lowest at the 10th
(1.75), 1.81 at the 16th, 1.84 at the 20th."""


class Trainer(LightningTrainer):
    """Lightning's Trainer, all of its keys but those that count epochs or time, and those that a run has of its own.

    Those are passed below, with the reason; given from Python they are a TypeError.

    Args:
        max_steps: optimizer steps of the whole run.
        val_check_interval: optimizer steps between two validations; the last step is validated too.
        log_every_n_steps: optimizer steps between two rows of training metrics.
        accumulate_grad_batches: micro-batches whose gradients make one optimizer step; null is what
            data.global_batch_size takes, or 1.
        gradient_clip_val: largest norm of the whole gradient; null does not clip.
        precision: auto is bf16-mixed where the hardware multiplies bfloat16, else 32-true.
        matmul_precision: precision of float32 matrix products; auto is medium where a CPU that trains in float32 was
            measured to be faster with it and as exact, else highest.
        num_sanity_val_steps: validation batches to try before training.
        enable_model_summary: print Lightning's table of modules at the start.
    """

    def __init__(
        self,
        *,
        max_steps: int = 1000,
        val_check_interval: int = 100,
        log_every_n_steps: int = 10,
        accumulate_grad_batches: int | None = None,
        gradient_clip_val: float | None = 1.0,
        precision: Precision = "auto",
        matmul_precision: MatmulPrecision = "auto",
        num_sanity_val_steps: int = 0,
        enable_model_summary: bool = False,
        **kwargs: Any,
    ) -> None:
        require_at_least(
            "trainer",
            max_steps=(max_steps, 1),
            val_check_interval=(val_check_interval, 1),
            log_every_n_steps=(log_every_n_steps, 1),
            accumulate_grad_batches=(accumulate_grad_batches, 1),
        )
        callbacks = kwargs.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        refuse_callbacks(map(type, callbacks))
        refuse_equal_keys(callbacks)
        refuse_averaging(callbacks)
        if kwargs.get("strategy") == "fsdp2" and any(isinstance(each, WeightAveraging) for each in callbacks):
            raise UserError(
                "trainer.callbacks: Lightning averages no weights that fsdp2 shards; use trainer.strategy ddp"
            )
        # From Python; the command line replaces `auto` before (cli/config/auto.py): config.yaml then says what ran.
        if str(kwargs.get("strategy")).startswith("fsdp") and kwargs["strategy"] != "fsdp2":
            raise UserError(
                f"trainer.strategy {kwargs['strategy']} is Lightning's older FSDP, whose flat parameters leave Muon no "
                "matrices; use fsdp2"
            )
        device = training_device(str(kwargs.get("accelerator", "auto")))
        precision = fastest_precision(device) if precision == "auto" else precision
        matmul_precision = fastest_matmul(precision, device) if matmul_precision == "auto" else matmul_precision
        torch.set_float32_matmul_precision(matmul_precision)
        self._accumulate_given = accumulate_grad_batches
        super().__init__(
            max_steps=max_steps,
            # Lightning counts this one in micro-batches.
            val_check_interval=val_check_interval * (accumulate_grad_batches or 1),
            log_every_n_steps=log_every_n_steps,
            accumulate_grad_batches=accumulate_grad_batches or 1,
            gradient_clip_val=gradient_clip_val,
            precision=precision,  # type: ignore[arg-type]
            num_sanity_val_steps=num_sanity_val_steps,
            enable_model_summary=enable_model_summary,
            # The training data are one endless stream whose batch k is known from k alone (tinytf.data.windows).
            # An epoch, a limit on its batches or another sampler would break that, and exact resume with it.
            max_epochs=-1,
            min_epochs=None,
            check_val_every_n_epoch=None,
            limit_train_batches=None,
            overfit_batches=0.0,
            reload_dataloaders_every_n_epochs=0,
            use_distributed_sampler=False,
            # A clock would stop it at a step that no other run stops at, in the middle of an accumulation too.
            max_time=None,
            # The run folder, its checkpoints and its loggers are the command line's `checkpoint` and `tracking`.
            default_root_dir=None,
            enable_checkpointing=True,
            fast_dev_run=False,
            barebones=False,
            model_registry=None,
            sync_batchnorm=False,
            **kwargs,
        )
        watch_processes(self.strategy)

    def keep_global_batch(self, global_batch: int, batch: int) -> None:
        """Accumulate as many micro-batches of ``batch`` windows per device as make steps of ``global_batch`` windows.

        Not in the constructor's arguments, because Lightning's constructor finds out how many devices there are.

        Raises:
            UserError: if it does not divide, or contradicts accumulate_grad_batches.
        """
        accumulate = accumulation(global_batch, batch, self.num_devices * self.num_nodes, self._accumulate_given)
        self.val_check_interval = self.val_check_interval // self.accumulate_grad_batches * accumulate
        self.accumulate_grad_batches = accumulate


def describe_readings(tokens: int, readings: float, examples: Sequence[int] | None = None) -> str:
    """How much training text there is, and how often a run reads it.

    Args:
        examples: of prompts and completions their number, and the tokens that are learned.
    """
    times = f"read {readings:{',.0f' if readings >= 10 else '.2g'}} times"
    if examples:
        return f"{examples[0]:,} examples with {examples[1]:,} completion tokens of {tokens:,}, {times}"
    return f"{tokens:,} tokens of training text, {times}"


def overfitting(readings: float, max_steps: int) -> str | None:
    """What to say of a run that reads its training text too often; None if it does not."""
    if readings <= MOST_READINGS:
        return None
    return (
        f"the training text is read {readings:,.0f} times: after about {MOST_READINGS} a model learns it by heart and "
        f"val/loss rises; give more text, or trainer.max_steps {max(1, int(max_steps * MOST_READINGS / readings))}"
    )


def accumulation(global_batch: int, batch: int, devices: int, given: int | None) -> int:
    """Micro-batches per optimizer step on each device, so that a step stays what it is when the devices change.

    Args:
        global_batch: windows per step over all devices, ``data.global_batch_size``.
        batch: windows per micro-batch on one device.
        devices: how many.
        given: ``trainer.accumulate_grad_batches``; None leaves it to this.

    Raises:
        UserError: if it does not divide, or ``given`` contradicts it.
    """
    at_once = f"data.batch_size {batch} on {devices} device{'s' if devices > 1 else ''}"
    if global_batch % (batch * devices):
        raise UserError(
            f"data.global_batch_size {global_batch} is no multiple of the {batch * devices} windows that are read at "
            f"once ({at_once})"
        )
    needed = global_batch // (batch * devices)
    if given is not None and given != needed:
        raise UserError(
            f"trainer.accumulate_grad_batches {given} contradicts data.global_batch_size {global_batch}, which takes "
            f"{needed} with {at_once}: set one of the two to null"
        )
    return needed
