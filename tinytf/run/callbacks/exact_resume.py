"""What Lightning's own resume gets wrong, put right in the checkpoint when it is written and when it is read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.run.callbacks.checkpoints import BestCheckpoints

log = logging.getLogger(__name__)


class ExactResume(Callback):
    """Makes a resumed run the run that was never stopped.

    Saved at a step where a validation is due but not done, Lightning 2.6's loop state reads as if it were done (it
    would be skipped); saved in the middle of one, as if the batches before had been seen (a wrong val/loss). Here
    such a state always reads "about to validate, nothing seen yet".

    Args:
        folder: the run's, which may have moved since the checkpoint was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.validated_at = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated_at = batches_done(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        done = batches_done(trainer)
        loop = checkpoint["loops"]["fit_loop"]
        batch = loop["epoch_loop.batch_progress"]
        validation = loop["epoch_loop.val_loop.batch_progress"]
        due = trainer.enable_validation and done % int(trainer.val_check_batch or 1) == 0
        if due and batch["total"]["completed"] == done:
            # Otherwise the restarted loop counts this step twice, and every later row is logged one step late.
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step - 1
        if due and self.validated_at != done:
            for counts in (batch["total"], batch["current"]):
                counts["completed"] = counts["processed"]
            validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            validation["current"] = dict.fromkeys(validation["current"], 0)
            validation["is_last_batch"] = False
        else:
            # A validation that an earlier restart repeated leaves its counts uneven, which reads as unfinished.
            validation["total"] = dict.fromkeys(validation["total"], validation["total"]["completed"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._follow_the_folder(trainer, checkpoint)
        before = checkpoint["tinytf"]["world_size"]
        if before != trainer.world_size:
            log.warning(
                "resuming on %d processes a run of %d: it sees the same samples, but sums in another order, "
                "so it will not be bitwise the same",
                trainer.world_size,
                before,
            )

        self._count_in_todays_batches(trainer, checkpoint)

    def _count_in_todays_batches(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Restate the counts of micro-batches where a step is made of more or fewer of them than before.

        Lightning steps where the count divides by the accumulation: otherwise the first step would be made of too few.
        """
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        before = progress["total"]["processed"]
        now = checkpoint["global_step"] * trainer.accumulate_grad_batches
        if now == before:
            return
        for counts in (progress["total"], progress["current"]):
            counts.update({key: count + now - before for key, count in counts.items()})
        data.load_state_dict({**checkpoint[type(data).__qualname__], "batches": now})

    def _follow_the_folder(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        # ModelCheckpoint stores absolute paths, and drops its list of the best where they are not today's. A run that
        # branches into a folder of its own starts a list of its own: the files of the old one are not in it.
        in_place = Path(str(trainer.ckpt_path)).resolve().parent == self.folder.resolve()
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, BestCheckpoints) and state and not in_place:
                del checkpoint["callbacks"][callback.state_key]
            elif isinstance(callback, BestCheckpoints) and state:
                state["dirpath"] = str(callback.dirpath)
                for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = self._here(state[key])
                state["best_k_models"] = {self._here(path): score for path, score in state["best_k_models"].items()}
                shorten(state, callback.save_top_k)

    def _here(self, path: str) -> str:
        return str(self.folder / Path(path).name) if path else path


def shorten(state: dict[str, Any], save_top_k: int) -> None:
    """Cut a list of the best to ``save_top_k``: of a longer one, Lightning never displaces the worst."""
    if not 0 < save_top_k < len(state["best_k_models"]):
        return
    best = sorted(state["best_k_models"].items(), key=lambda item: float(item[1]))[:save_top_k]
    state["best_k_models"] = dict(best)
    state["kth_best_model_path"], state["kth_value"] = best[-1]


def batches_done(trainer: Trainer) -> int:
    """Micro-batches trained on since the run began, over all its attempts."""
    # Lightning's annotation names the tracker's base class, which lacks the attribute.
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]
