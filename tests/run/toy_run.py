"""A run small enough for a unit test, exactly resumable, and logging as tinytf's own module does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tinytf.data.tokenizer import character_tokenizer
from tinytf.model import Transformer, TransformerConfig

BATCH, SEQ = 2, 8
CHARACTERS = "abcdefghij\n"
VOCAB = len(CHARACTERS)


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self) -> None:
        self.start = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        index = self.start
        while True:
            generator = torch.Generator().manual_seed(index)
            tokens = torch.randint(0, VOCAB, (BATCH, SEQ + 1), generator=generator)
            yield tokens[:, :-1], tokens[:, 1:]
            index += 1


class ToyData(LightningDataModule):
    batch_size, seq_len = BATCH, SEQ

    def __init__(self) -> None:
        super().__init__()
        self.stream = Stream()
        self.tokenizer = character_tokenizer(CHARACTERS, end_of_text=False)

    def split(self, name: str) -> Any:
        return torch.arange(100).numpy() % VOCAB

    def train_dataloader(self) -> Any:
        return DataLoader(self.stream, batch_size=None)

    def val_dataloader(self) -> Any:
        tokens = torch.arange(3 * BATCH * (SEQ + 1)).reshape(-1, SEQ + 1) % VOCAB
        return DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=BATCH)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.trainer.fit_loop.epoch_loop.batch_progress.total.processed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stream.start = state_dict["batches"]


class ToyModule(LightningModule):
    def __init__(self, config: TransformerConfig | None = None, dropped: frozenset[int] = frozenset()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Transformer(config or TransformerConfig(VOCAB, 16, 2, 2, max_seq_len=32))
        self.dropped = dropped
        self.losses: list[Tensor] = []
        self.log_to_loggers = True

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, targets = batch
        return torch.nn.functional.cross_entropy(self.model(tokens).flatten(0, 1), targets.flatten())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.detach())
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        losses, self.losses = self.losses, []
        step = self.trainer.global_step + 1
        if step % self.trainer.log_every_n_steps == 0:
            values = {"train/loss": torch.stack(losses).mean(), "lr": 1e-3 / step}
            if step not in self.dropped:
                values["train/sometimes"] = float(step)
            self.log_dict(values, logger=self.log_to_loggers)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), logger=self.log_to_loggers)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


class Saver(Checkpoint):
    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every, self.done = folder, every, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.done = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        step = trainer.global_step
        if step % self.every == 0 and step != self.done:
            self.done = step
            trainer.save_checkpoint(self.folder / f"{step}.ckpt", weights_only=False)


class Dies(Checkpoint):
    """Raises at the end of an optimizer step, after what is saved there: as a kill does, but testable."""

    def __init__(self, step: int, exception: BaseException) -> None:
        self.step, self.exception = step, exception

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise self.exception


def fit(
    folder: Path,
    callbacks: Sequence[Callback],
    *,
    steps: int = 12,
    log_every: int = 2,
    val_every: int = 4,
    save_every: int = 5,
    accumulate: int = 1,
    loggers: Sequence[Logger] = (),
    resume: Path | None = None,
    dies: Callback | None = None,
    module: LightningModule | None = None,
    best: bool = True,
    progress: bool = False,
) -> Trainer:
    savers: list[Callback] = [Saver(folder, save_every)]
    if best:
        savers.insert(0, ModelCheckpoint(folder, "best-{step}", "val/loss", save_on_train_epoch_end=False))
    trainer = Trainer(
        accelerator="cpu", logger=list(loggers) or False, callbacks=[*callbacks, *savers, *([dies] if dies else [])],
        max_steps=steps, max_epochs=-1, log_every_n_steps=log_every, val_check_interval=val_every * accumulate,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, accumulate_grad_batches=accumulate,
        enable_progress_bar=progress, enable_model_summary=False, default_root_dir=folder,
        enable_checkpointing=True, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module or ToyModule(), datamodule=ToyData(), ckpt_path=str(resume) if resume else None)
    return trainer


def records(folder: Path, event: str | None = None) -> list[dict[str, Any]]:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not strict JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    return [record for record in found if event is None or record["event"] == event]
