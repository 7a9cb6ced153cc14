"""The callback that keeps the journal: one row of metrics per logging step, there first, then in the loggers."""

from __future__ import annotations

import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from tinytf.run.callbacks import RunCallback, run_dir_of, steps_remain
from tinytf.run.callbacks.checkpoints import best_checkpoints
from tinytf.run.journal import FILE_NAME, Journal, Record, exit_reason
from tinytf.run.loggers.follower import Follower
from tinytf.utils.machine import this_process
from tinytf.utils.text import public

Row = dict[str, float]

log = logging.getLogger(__name__)

VALIDATION = "val/"
"""What names of validation metrics begin with; all others are a training step's."""

ATTEMPT = frozenset({"start", "error", "end"})
"""Events of one attempt at the run, which a resumed run keeps."""


class JournalCallback(RunCallback):
    """Write ``metrics.jsonl``, and give the same rows to ``trainer.loggers``; added automatically.

    A row is written at each logging step (every ``trainer.log_every_n_steps`` optimizer steps), of the values that
    were given to ``self.log`` since the last one, and at the end of each validation, of those named ``val/…``.
    It turns the module's own logging to loggers off (``log_to_loggers``): Lightning writes to them after the step's
    checkpoint, so that a kill in between would lose the row, and numbers it one less. In the list of callbacks it
    comes after those that log and before those that save.

    The journal is synced to disk before each checkpoint. A resumed run drops what is newer than its checkpoint: but for
    ``time`` and `NONDETERMINISTIC_METRICS`, the metrics are those of a run that was never stopped. The ``start``,
    ``error`` and ``end`` events of earlier attempts stay. Processes other than the first write nothing.

    Args:
        start: what the ``start`` event carries besides the process: provenance, data, config; plain types.
        run_dir: the run directory, if there is no open run.
    """

    def __init__(self, start: Mapping[str, Any], run_dir: Path | None = None) -> None:
        self.run_dir = run_dir
        self.start = start
        self.latest: Row = {}
        """The last value of each metric."""
        self.tokens = 0
        self._journal: Journal | None = None  # While the run is open, and in the first process alone.
        self._handler = WarningsHandler(self._on_warning)
        self._early_warnings: list[dict[str, Any]] = []
        self._trainer: Trainer | None = None
        self._step = 0
        self._rows = 0
        self._validated: int | None = None
        self._logged: dict[str, Tensor] = {}
        self._added: dict[str, float | Tensor] = {}
        self._began = 0.0
        self._seconds_before = 0.0

    # -- what others write -------------------------------------------------------------------------------------

    def add(self, values: Mapping[str, float | Tensor]) -> None:
        """Put metrics into the row that this step is about to write."""
        self._added.update(values)

    def write(self, event: str, **fields: Any) -> None:
        """Append an event at the current step."""
        journal = self._journal  # A tracker's thread may warn while the run ends.
        if journal and self._trainer:
            # A message or traceback of a library may quote an address whole. A sample is the model's own text.
            shown = fields if event == "sample" else public(fields)
            journal.write(event, self._trainer.global_step, shown)

    def checkpoint_saved(self, path: Path, step: int, seconds: float) -> None:
        """Append the ``checkpoint`` event; `DurableCheckpointIO` calls it when the file is in place."""
        if self._journal:
            fields = {"path": path.name, "bytes": path.stat().st_size, "seconds": round(seconds, 4)}
            self._journal.write("checkpoint", step, fields)

    def _on_warning(self, fields: dict[str, Any]) -> None:
        if self._journal:
            self.write("warning", **fields)
        else:
            self._early_warnings.append(fields)

    # -- begin and end -----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        if stage == "fit":
            # Rows go to the loggers from here; logged by the module too, each step would be there twice.
            pl_module.log_to_loggers = False  # type: ignore[assignment]
            if trainer.is_global_zero:
                self._handler.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._began = time.monotonic()
        if self._validated is None:  # A fresh start, or a checkpoint of a run that kept no journal.
            self._validated = self._step
        if trainer.is_global_zero:
            journal = Journal(run_dir_of(trainer) / FILE_NAME)
            # A run that branches into a directory of its own has no journal there yet, and has lost nothing.
            counted = self._rows if journal.path.exists() else 0
            broken = journal.rewind(self._survives)
            self._rows = sum(record["event"] == "metrics" for record in journal.records())
            if self._rows < counted:
                log.warning(
                    "%s: it has %d rows of metrics, but its checkpoint counted %d: curves of this run have a gap",
                    journal.path, self._rows, counted,
                )  # fmt: skip
            attempt = journal.path.stat().st_size if journal.path.exists() else 0
            self._begin(trainer, journal, self._step if trainer.ckpt_path else None)
            if broken:
                message = f"{journal.path}: {broken} lines were no records, as after a power cut, and are removed"
                self.write("warning", level="WARNING", logger=__name__, message=message)
            for logger in trainer.loggers:
                if isinstance(logger, Follower):
                    logger.follow(journal.path, attempt)

    def _survives(self, record: Record) -> bool:
        """Whether a record is older than the state that this run resumes from."""
        if record["event"] in ATTEMPT:
            return True
        # The validation of the checkpoint's own step may still be to come: then it runs again.
        of_validation = record["event"] == "sample" or any(key.startswith(VALIDATION) for key in record)
        last = self._validated if of_validation else self._step
        return bool(record["step"] <= last)

    def _begin(self, trainer: Trainer, journal: Journal, resumed_from: int | None) -> None:
        self._journal = journal
        ckpt_path = str(trainer.ckpt_path) if trainer.ckpt_path else None
        self.write(
            "start", resumed_from_step=resumed_from, ckpt_path=ckpt_path, max_steps=trainer.max_steps,
            process=this_process(), **self.start,
        )  # fmt: skip
        for fields in self._early_warnings:
            self.write("warning", **fields)
        self._early_warnings.clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._handler.remove()  # First: on a full disk, what follows raises.
        if not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        if not self._journal:
            self._begin(trainer, Journal(run_dir_of(trainer) / FILE_NAME), None)
        reason, detail = exit_reason(exception)
        if reason == "error":
            trace = "".join(traceback.format_exception(type(exception), exception, exception.__traceback__))
            self.write("error", type=type(exception).__name__, message=str(exception), traceback=trace)
        self._end(trainer, reason, detail)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Killed between its last checkpoint and its end, a run has nothing left to train, but its end to write.
        if trainer.is_global_zero and not self._journal:
            last = deque(Journal(run_dir_of(trainer) / FILE_NAME).records(), maxlen=1)
            if not last or last[0]["event"] != "end":
                self.on_train_start(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not in on_train_end: the final checkpoint is saved there, and belongs before the end.
        if stage == "fit" and trainer.is_global_zero:
            self._end(trainer, "finished", None)

    def _end(self, trainer: Trainer, reason: str, detail: str | None) -> None:
        self._handler.remove()
        if not self._journal:
            return
        early = reason == "finished" and bool(trainer.should_stop) and steps_remain(trainer)
        best = best_checkpoints(trainer)
        path, score = (best.best_model_path, best.best_model_score) if best else ("", None)
        self._handler.acquire()  # The thread of a tracker may be warning: before the end, not after it.
        try:
            self.write(
                "end", reason=reason, detail=early_stop_reason(trainer) if early else detail, stopped_early=early,
                tokens=self.tokens, seconds=round(self.seconds(), 3),
                best_checkpoint=Path(path).name if path else None,
                best_score=shortest_float32(score) if score is not None else None,
            )  # fmt: skip
            self._journal.sync()
            self._journal.close()
            self._journal = None
        finally:
            self._handler.release()

    # -- rows --------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.tokens += batch[0].numel() * trainer.world_size
        if trainer.global_step == self._step:
            return  # Gradients are still accumulating.
        self._step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self._step % every == 0:
            self._write_row(trainer, {**self._logged_anew(trainer), **self._added})
            self._added.clear()

    def _logged_anew(self, trainer: Trainer) -> dict[str, Tensor]:
        """What was logged since the last row: ``callback_metrics`` also has the values of earlier steps."""
        before, self._logged = self._logged, {
            name: value
            for name, value in trainer.callback_metrics.items()
            if not name.startswith(VALIDATION) and name not in ("step", "epoch")
        }  # fmt: skip
        # self.log puts each value into new memory; one that was not logged again is the same tensor as before.
        return {
            name: value
            for name, value in self._logged.items()
            if name not in before or not value.is_set_to(before[name])
        }

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validated = self._step
        values = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(VALIDATION)}
        self._write_row(trainer, values)

    def _write_row(self, trainer: Trainer, values: Mapping[str, float | Tensor]) -> None:
        row = to_floats(values)
        self.latest.update(row)
        if self._journal and row:
            self._journal.write("metrics", self._step, row)
            self._rows += 1
            for logger in trainer.loggers:
                if isinstance(logger, Follower):
                    logger.wake()
                else:
                    logger.log_metrics(row, step=self._step)
                    logger.save()

    # -- state -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._journal:
            self._journal.sync()

    def seconds(self) -> float:
        """Time spent between start and now, in this attempt and in those that it resumes."""
        return self._seconds_before + (time.monotonic() - self._began if self._began else 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"validated": self._validated, "rows": self._rows, "tokens": self.tokens, "seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validated = state_dict["validated"]
        self._rows = state_dict["rows"]
        self.tokens = state_dict["tokens"]
        self._seconds_before = state_dict["seconds"]


# -- for other callbacks: without a JournalCallback in the Trainer, they do nothing ----------------------------


def journal_of(trainer: Trainer) -> JournalCallback | None:
    """The Trainer's journal, if it has one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, JournalCallback)), None)


def log_to_row(trainer: Trainer, values: Mapping[str, float | Tensor]) -> None:
    """Put a callback's metrics into the row of this step.

    Not ``self.log``: that takes about 0.3 ms per value here, and Lightning then looks at each one after every step.
    """
    if journal := journal_of(trainer):
        journal.add(values)


def write_event(trainer: Trainer, event: str, **fields: Any) -> None:
    """Append an event to the journal, at the current step."""
    if journal := journal_of(trainer):
        journal.write(event, **fields)


def to_floats(values: Mapping[str, float | Tensor]) -> Row:
    """Scalars as Python floats: float64 as it is, all others by the shortest digits that mean the same float32."""
    row = {}
    for name, value in values.items():
        number = value.item() if isinstance(value, Tensor) else value
        is_double = isinstance(value, Tensor) and value.dtype == torch.float64
        row[name] = number if is_double else shortest_float32(number)
    return row


def shortest_float32(number: Any) -> float:
    """The float with the fewest digits that is the same number in float32: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(float(number))))  # NumPy itself takes no tensor of a GPU.


def early_stop_reason(trainer: Trainer) -> str:
    """Why a run ended before its last step, in EarlyStopping's words if it was that."""
    messages = [callback.stopping_reason_message for callback in trainer.early_stopping_callbacks]
    said = next((message for message in messages if message), None)
    return f"EarlyStopping: {' '.join(said.split())}" if said else "a callback set trainer.should_stop"


class WarningsHandler(logging.Handler):
    """Gives Python's warnings and tinytf's log records to ``write``, as level, logger and message.

    What was shown on stderr without it is still shown there.
    """

    LOGGERS = ("tinytf", "py.warnings")

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self.write = write
        self._shown: list[logging.Logger] = []

    def install(self) -> None:
        """Begin to take what is logged and warned."""
        logging.captureWarnings(True)
        for logger in map(logging.getLogger, self.LOGGERS):
            # Python's last resort prints what no handler takes. With this handler in place, it must be asked to.
            heard = [*logger.handlers, *logging.getLogger().handlers]
            if logging.lastResort and all(isinstance(handler, logging.NullHandler) for handler in heard):
                logger.addHandler(logging.lastResort)
                self._shown.append(logger)
            logger.addHandler(self)

    def remove(self) -> None:
        """End it, and leave logging as it was."""
        for logger in map(logging.getLogger, self.LOGGERS):
            logger.removeHandler(self)
        while self._shown and logging.lastResort:
            self._shown.pop().removeHandler(logging.lastResort)
        logging.captureWarnings(False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write({"level": record.levelname, "logger": record.name, "message": record.getMessage().rstrip()})
        except Exception:  # A full disk, say: logging must not end the run.
            self.handleError(record)
