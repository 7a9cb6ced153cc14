"""When a run saves, and which of its files it keeps: the best by val/loss, and the newest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from tinytf.run.callbacks import RunCallback, run_dir_of, steps_remain
from tinytf.run.directory import BEST, is_periodic, link, link_last, loss_of, saved_checkpoints


class BestCheckpoints(RunCallback, ModelCheckpoint):
    """ModelCheckpoint on val/loss that keeps ``best.ckpt`` and ``last.ckpt`` up to date; added automatically.

    Args:
        save_top_k: how many to keep; 0 keeps none.
        run_dir: the run directory, if there is no open run.
    """

    def __init__(self, save_top_k: int = 3, run_dir: Path | None = None) -> None:
        super().__init__(
            filename="step-{step:07d}-val_loss-{val/loss:.4f}",
            monitor="val/loss",
            save_top_k=save_top_k,
            auto_insert_metric_name=False,
            enable_version_counter=False,  # It would make a second name for a step that is run again.
            save_on_train_epoch_end=False,
        )
        self.run_dir = run_dir

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = os.path.realpath(run_dir_of(trainer))
        super().setup(trainer, pl_module, stage)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        # Lightning calls it after the new file is in its list and before the displaced one is removed: linked here,
        # no link ever points at nothing.
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            link(self._folder, BEST, Path(self.best_model_path))
            link_last(self._folder)

    @property
    def _folder(self) -> Path:
        return Path(str(self.dirpath))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self._remove_displaced(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_displaced(trainer)  # A run that was already done when it was resumed validates no more.

    def _remove_displaced(self, trainer: Trainer) -> None:
        """Remove what was displaced from a full list but still exists.

        A kill just after the new file was saved leaves it, and Lightning never removes the one it resumed from. A file
        better than the worst of the list was not displaced, and is never touched.
        """
        if len(self.best_k_models) < max(self.save_top_k, 1):
            return
        listed = {Path(path).name for path in self.best_k_models}
        worst = max(loss_of(Path(path)) for path in self.best_k_models)
        for path in saved_checkpoints(self._folder):
            if path.name not in listed and loss_of(path) >= worst and not is_periodic(path):
                trainer.strategy.remove_checkpoint(path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over those of the listed files that are in the run directory now.

        ModelCheckpoint stores absolute paths, and drops its list if the folder has another path: here it follows a
        folder that was moved. A run that branches into a new directory has none of the files, and starts with an empty
        list. A list longer than ``save_top_k`` is cut, because Lightning would never displace its worst.
        """
        listed = {str(self._folder / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        # By name: a list that holds ".." would have the folder of all runs removed when it is displaced.
        files = {str(path) for path in saved_checkpoints(self._folder)}
        here = sorted((item for item in listed.items() if item[0] in files), key=lambda item: float(item[1]))
        best = dict(here[: self.save_top_k or None])
        if not best:
            return
        first, worst = min(best, key=best.__getitem__), max(best, key=best.__getitem__)
        full = len(best) == self.save_top_k
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_k_models": best,
                "best_model_path": first,
                "best_model_score": best[first],
                "kth_best_model_path": worst if full else "",
                "kth_value": best[worst] if full else state_dict["kth_value"],
            }
        )


def best_checkpoints(trainer: Trainer) -> ModelCheckpoint | None:
    """The run's own if it has one: ``trainer.checkpoint_callback`` is the first, which may be one the user added."""
    found = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next((callback for callback in found if isinstance(callback, BestCheckpoints)), found[0] if found else None)


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
        trainer.save_checkpoint(run_dir / f"step-{trainer.global_step:07d}.ckpt")
        if trainer.is_global_zero:
            link_last(run_dir)
        self._remove_old(trainer)

    def _remove_old(self, trainer: Trainer) -> None:
        periodic = [path for path in saved_checkpoints(run_dir_of(trainer)) if is_periodic(path)]
        for old in periodic[self.keep_last :] if self.keep_last else []:
            trainer.strategy.remove_checkpoint(old)
