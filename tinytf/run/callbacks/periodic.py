"""Save every so many steps, and at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from tinytf.run.callbacks import RunCallback, run_dir_of, steps_remain
from tinytf.run.directory import is_periodic, link_last, saved_checkpoints


class PeriodicCheckpoint(RunCallback, Checkpoint):
    """Save every N optimizer steps and when training ends; added automatically.

    Not ModelCheckpoint(every_n_train_steps): after a resume that one saves again at the first micro-batch of an
    accumulation, over a good file, and loses the gradients gathered so far.

    Args:
        every_n_steps: optimizer steps between two saves; 0 saves at the end only.
        keep_last: files to keep, the newest; 0 keeps all.
        run_dir: the run directory, if there is no open run.
    """

    def __init__(self, every_n_steps: int = 100, keep_last: int = 2, run_dir: Path | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.run_dir = run_dir
        self._saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        # The last step is saved when training ends, after the validation that may be due at it.
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if due and steps_remain(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_old(trainer)  # A kill between a save and this leaves one too many.

    def save(self, trainer: Trainer) -> None:
        """Save unless this step already is; every process must call it."""
        if trainer.global_step == self._saved_step:
            return
        self._saved_step = trainer.global_step
        run_dir = run_dir_of(trainer)
        trainer.save_checkpoint(run_dir / f"step={trainer.global_step:07d}.ckpt")
        if trainer.is_global_zero:
            link_last(run_dir)
        self._remove_old(trainer)

    def _remove_old(self, trainer: Trainer) -> None:
        periodic = [path for path in saved_checkpoints(run_dir_of(trainer)) if is_periodic(path)]
        for old in periodic[self.keep_last :] if self.keep_last else []:
            trainer.strategy.remove_checkpoint(old)
