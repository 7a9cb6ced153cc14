"""When a run is saved: every so many steps, at its end, and which links then point where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from tinytf.run.directory import BEST, link, link_last, loss_of, saved


class BestCheckpoints(ModelCheckpoint):
    """Lightning's own, saving the N best by val/loss, and keeping ``best.ckpt`` and ``last.ckpt`` up to date."""

    def __init__(self, folder: Path, save_top_k: int) -> None:
        super().__init__(
            dirpath=folder,
            filename="step={step:07d}-val_loss={val/loss:.4f}",
            monitor="val/loss",
            save_top_k=save_top_k,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        self.folder = folder

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        # Lightning calls it after the new file is in its list and before the displaced one is removed: linked here,
        # no link ever points at nothing.
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            link(self.folder, BEST, Path(self.best_model_path))
            link_last(self.folder)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self._forget_displaced(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget_displaced(trainer)  # A run that was already done when it was resumed validates no more.

    def _forget_displaced(self, trainer: Trainer) -> None:
        """Remove what was displaced from a full list but is still there.

        A kill just after the new file was saved leaves it, and Lightning never removes the one it resumed from. A file
        better than the worst of the list was not displaced, and is never touched.
        """
        if len(self.best_k_models) < max(self.save_top_k, 1):
            return
        listed = {Path(path).name for path in self.best_k_models}
        worst = max(loss_of(Path(path)) for path in self.best_k_models)
        for path in saved(self.folder):
            if path.name not in listed and loss_of(path) >= worst and not is_periodic(path):
                trainer.strategy.remove_checkpoint(path)


class PeriodicCheckpoint(Checkpoint):
    """Saves every N optimizer steps and when training ends.

    Not ModelCheckpoint(every_n_train_steps): after a resume that one saves again at the first micro-batch of an
    accumulation, over a good file, and loses the gradients gathered so far.

    Args:
        folder: the run's.
        every_n_steps: optimizer steps between two saves; 0 saves at the end only.
        keep: periodic files to keep, the newest; 0 keeps all.
    """

    def __init__(self, folder: Path, every_n_steps: int, keep: int) -> None:
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.done = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.done = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        # The last step is saved when training ends, after the validation that may be due at it.
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step < trainer.max_steps:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget_old(trainer)  # A kill between a save and this leaves one too many.

    def save(self, trainer: Trainer) -> None:
        """Save unless this step already is; every process must call it."""
        if trainer.global_step == self.done:
            return
        self.done = trainer.global_step
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step:07d}.ckpt")
        if trainer.is_global_zero:
            link_last(self.folder)
        self._forget_old(trainer)

    def _forget_old(self, trainer: Trainer) -> None:
        periodic = [path for path in saved(self.folder) if is_periodic(path)]
        for old in periodic[self.keep :] if self.keep else []:
            trainer.strategy.remove_checkpoint(old)


def is_periodic(path: Path) -> bool:
    """Whether a file is named as the periodic checkpoints are, without a loss."""
    return "-" not in path.name
