"""What Lightning's own resume gets wrong, corrected in the checkpoint when it is written and when it is read."""

from __future__ import annotations

import logging
import os
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tinytf.errors import UserError
from tinytf.run.callbacks import run_dir_of
from tinytf.utils.files import shorten

log = logging.getLogger(__name__)


class ExactResume(Callback):
    """Make a resumed run the run that was never stopped; added automatically.

    Saved at a step where a validation is due but not done, Lightning 2.6's loop state reads as if it were done (it
    would be skipped); saved in the middle of one, as if the batches before had been seen (a wrong val/loss). That
    EarlyStopping has decided to stop is saved nowhere: killed before the run's end, it would train on. Also restates
    the count of micro-batches when a step is made of more or fewer of them than before, and keeps callbacks of
    Lightning from what a resumed run would do otherwise.
    """

    def __init__(self) -> None:
        self.validated_at = -1
        self.stopped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                # Lightning's is that of the first logger, and relative until the run is resumed: it then takes its list
                # of files for another folder's.
                callback.dirpath = os.path.realpath(run_dir_of(trainer) / "checkpoints")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in trainer.checkpoint_callbacks:
            # It is saved nowhere: within an accumulation, a resumed run would save its step a second time. But one that
            # saves after validations may have this step's still to save.
            by_steps = isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps
            if isinstance(callback, ModelCheckpoint) and (by_steps or callback._train_time_interval):
                callback._last_global_step_saved = trainer.global_step
        # Without EarlyStopping in the config any more, the user wants the run to train on.
        if self.stopped and trainer.early_stopping_callbacks:
            trainer.should_stop = True
            log.warning(
                "EarlyStopping ended this run at step %d: take it out of trainer.callbacks to train on",
                trainer.global_step,
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated_at = batches_done(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["should_stop"] = bool(trainer.should_stop)
        done = batches_done(trainer)
        due = trainer.enable_validation and done % int(trainer.val_check_batch or 1) == 0
        normalize_loop_state(
            checkpoint["loops"]["fit_loop"], due=due, validated=self.validated_at == done, done=done,
            step=trainer.global_step,
        )  # fmt: skip

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        # Of a checkpoint without it, Lightning would train on the text from its start.
        states = {"loops": {"fit_loop": trainer.fit_loop.state_dict()}}
        states |= {type(data).__qualname__: state} if data is not None and (state := data.state_dict()) else {}
        if wrong := other_kind(checkpoint, states, ""):
            raise UserError(f"checkpoint {trainer.ckpt_path}: {wrong}, so the run cannot be resumed from it")
        self.stopped = checkpoint.get("should_stop") is True
        before = checkpoint.get("tinytf", {}).get("world_size")
        if isinstance(before, int) and before != trainer.world_size:
            log.warning(
                "resuming on %d processes a run of %d: it sees the same samples, but sums in another order, "
                "so it will not be bitwise the same",
                trainer.world_size,
                before,
            )
        # Lightning steps when the count divides by the accumulation: with another accumulation than before, the first
        # step would be made of too few micro-batches.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        now = checkpoint["global_step"] * trainer.accumulate_grad_batches
        added = now - progress["total"]["processed"]
        if added == 0:
            return
        for counts in (progress["total"], progress["current"]):
            counts.update({key: count + added for key, count in counts.items()})
        if data is not None:
            data.load_state_dict({**checkpoint[type(data).__qualname__], "batches": now})


def other_kind(found: Any, wanted: Any, name: str) -> str | None:
    """How a state differs in its keys and types from one that can be loaded; None if it does not."""
    if not isinstance(found, type(wanted)) or (isinstance(found, bool) and not isinstance(wanted, bool)):
        return f"its {name} is {shorten(repr(found), 60)}, which is no {type(wanted).__name__}"
    for key, value in wanted.items() if isinstance(wanted, dict) else ():
        inner = f"{name}.{key}".removeprefix(".")
        if wrong := other_kind(found[key], value, inner) if key in found else f"it has no {inner}":
            return wrong
    return None


def normalize_loop_state(loop: dict[str, Any], *, due: bool, validated: bool, done: int, step: int) -> None:
    """Make the fit loop's state say what a restart must do next. Changes ``loop`` in place.

    At step 4, with a validation of 3 batches every 2 steps, counts as (ready, started, processed, completed):

    =============================================  ============================  =================  ============
    saved                                          part of the state             Lightning wrote    it becomes
    =============================================  ============================  =================  ============
    in the last hook of the step, before its       batch_progress.total          (4, 4, 4, 3)       (4, 4, 4, 4)
    validation                                     val_loop batch_progress       (3, 3, 3, 3)       (1, 1, 0, 0)
    in that validation, after its first batch      val_loop batch_progress       (4, 4, 4, 3)       (1, 1, 0, 0)
    after that validation                          val_loop batch_progress       (6, 6, 6, 6)       unchanged
    the same, in a run resumed into it             val_loop batch_progress       (4, 4, 3, 3)       (3, 3, 3, 3)
    when training ends, after that validation      _batches_that_stepped         4                  3
    after the last step's, which is not due        _batches_that_stepped         3                  4
    =============================================  ============================  =================  ============

    (1, 1, 0, 0) reads as "in a validation, nothing seen yet": a restart runs the whole of it. Uneven counts read as an
    unfinished one, which would run again. A restart after a validation that was due adds one to
    ``_batches_that_stepped``, by which Lightning's own loggers number their rows.

    Args:
        loop: ``checkpoint["loops"]["fit_loop"]``.
        due: whether a validation is due at this step.
        validated: whether it is done.
        done: micro-batches processed.
        step: optimizer steps taken.
    """
    batch = loop["epoch_loop.batch_progress"]
    validation = loop["epoch_loop.val_loop.batch_progress"]
    if batch["total"]["completed"] == done:
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - due
    if due and not validated:
        for counts in (batch["total"], batch["current"]):
            counts["completed"] = counts["processed"]
        validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation["current"] = dict.fromkeys(validation["current"], 0)
        validation["is_last_batch"] = False
    else:
        validation["total"] = dict.fromkeys(validation["total"], validation["total"]["completed"])


def batches_done(trainer: Trainer) -> int:
    """Micro-batches processed since the run began, those of earlier attempts included."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]
