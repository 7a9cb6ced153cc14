"""The callback that writes a run down: one row of metrics, to the journal first and then to every tracker."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tinytf.run.journal import FILE_NAME, Journal, Record
from tinytf.run.log_capture import LogCapture
from tinytf.run.loggers.tracker import Tracker
from tinytf.utils.machine import this_process

Row = dict[str, float]

VALIDATION = "val/"
"""What names of validation metrics begin with; all others are a training step's."""

MEASURES_MACHINE = frozenset(
    {"train/tokens_per_sec", "train/mfu", "train/data_wait", "system/memory_gb", "system/gpu_memory_gb"}
)
"""Metrics of the machine's work. All others are the same in a run that was killed and resumed as in an unbroken one."""

_ATTEMPT = frozenset({"start", "error", "end"})


class MetricsFile(Callback):
    """Writes ``metrics.jsonl``, and the same rows to ``trainer.loggers``.

    A row is written at each logging step (every ``trainer.log_every_n_steps`` optimizer steps), of the values that
    were given to ``self.log`` since the last one, and at the end of each validation, of those named ``val/…``.
    The module logs with ``logger=False``: Lightning itself writes to its loggers after the checkpoint of the
    step, so that a kill in between would lose the row, and numbers it one less. In the list of callbacks it comes
    after those that log and before those that save.

    The journal is synced to disk before each checkpoint. A resumed run drops what is newer than its checkpoint and
    goes on: but for ``time`` and `MEASURES_MACHINE`, the metrics are those of a run that was never stopped. The
    ``start``, ``error`` and ``end`` events of earlier attempts stay.

    Args:
        run_dir: the run's folder.
        start: what the ``start`` event carries beside the process: provenance, data, seeds; plain types.
    """

    def __init__(self, run_dir: Path, start: Mapping[str, Any]) -> None:
        self.journal = Journal(Path(run_dir) / FILE_NAME)
        self.start = start
        self.latest: Row = {}
        """The last value of each metric."""
        self.tokens = 0
        self._capture = LogCapture(self._warned)
        self._early: list[dict[str, Any]] = []
        self._open = False
        self._trainer: Trainer | None = None
        self._step = 0
        self._validated: int | None = None
        self._written: dict[str, Tensor] = {}
        self._noted: dict[str, float | Tensor] = {}
        self._began = 0.0
        self._seconds_before = 0.0

    # -- what others write -------------------------------------------------------------------------------------

    def note(self, values: Mapping[str, float | Tensor]) -> None:
        """Put metrics into the row that this step is about to write."""
        self._noted.update(values)

    def write(self, event: str, **fields: Any) -> None:
        """Append an event at the current step; other processes than the first write nothing."""
        if self._open and self._trainer is not None:
            self.journal.write(event, self._trainer.global_step, fields)

    def checkpoint_saved(self, path: Path, step: int, seconds: float) -> None:
        """Append the ``checkpoint`` event; the writer calls it when the file is in place."""
        if self._open:
            fields = {"path": path.name, "bytes": path.stat().st_size, "seconds": round(seconds, 4)}
            self.journal.write("checkpoint", step, fields)

    def durable(self) -> None:
        """See that all that was written is on disk, if anything was."""
        if self._open:
            self.journal.durable()

    # -- a run's life ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        if stage == "fit" and trainer.is_global_zero:
            self._capture.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._began = time.monotonic()
        if self._validated is None:  # A fresh start, or a checkpoint of a run that kept no journal.
            self._validated = self._step
        if trainer.is_global_zero:
            broken = self.journal.rewind(self._survives)
            for logger in trainer.loggers:
                if isinstance(logger, Tracker):
                    logger.go_on(self.journal.records())
            self._begin(trainer, self._step if trainer.ckpt_path else None)
            if broken:
                message = f"{self.journal.path}: {broken} lines were no records, as after a power cut, and are removed"
                self.write("warning", level="WARNING", logger=__name__, message=message)

    def _survives(self, record: Record) -> bool:
        """Whether a record is older than the state this run goes on from."""
        if record["event"] in _ATTEMPT:
            return True
        # The validation of the checkpoint's own step may still be to come: then it runs again.
        of_validation = record["event"] == "sample" or any(key.startswith(VALIDATION) for key in record)
        last = self._validated if of_validation else self._step
        return bool(record["step"] <= last)

    def _begin(self, trainer: Trainer, resumed_from: int | None) -> None:
        self._open = True
        ckpt_path = str(trainer.ckpt_path) if trainer.ckpt_path else None
        self.write(
            "start", resumed_from_step=resumed_from, ckpt_path=ckpt_path, max_steps=trainer.max_steps,
            process=this_process(), **self.start,
        )  # fmt: skip
        for fields in self._early:
            self.write("warning", **fields)
        self._early.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.tokens += batch[0].numel() * trainer.world_size
        if trainer.global_step == self._step:
            return  # Gradients are still accumulating.
        self._step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self._step % every == 0:
            self._write_row(trainer, {**self._fresh(trainer), **self._noted})
            self._noted.clear()

    def _fresh(self, trainer: Trainer) -> dict[str, Tensor]:
        """What was logged since the last row: Lightning goes on showing older values beside it."""
        logged = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if not name.startswith(VALIDATION) and name not in ("step", "epoch")
        }
        # A new value lies in new memory, as long as the old one is held, which `_written` does.
        old = {name: value.data_ptr() for name, value in self._written.items()}
        self._written, before = logged, self._written
        del before
        return {name: value for name, value in logged.items() if old.get(name) != value.data_ptr()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validated = self._step
        values = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(VALIDATION)}
        self._write_row(trainer, values)

    def _write_row(self, trainer: Trainer, values: Mapping[str, float | Tensor]) -> None:
        row = to_floats(values)
        self.latest.update(row)
        if self._open and row:
            self.journal.write("metrics", self._step, row)
            for logger in trainer.loggers:
                logger.log_metrics(row, step=self._step)
                logger.save()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.durable()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        if not self._open:
            self._begin(trainer, None)
        reason, detail = why(exception)
        if reason == "error":
            trace = "".join(traceback.format_exception(type(exception), exception, exception.__traceback__))
            self.write("error", type=type(exception).__name__, message=str(exception), traceback=trace)
        self._end(trainer, reason, detail)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Killed between its last checkpoint and its end, a run has nothing left to train, but its end to write.
        if trainer.is_global_zero and not self._open and self.journal.last_event() != "end":
            self.on_train_start(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not in on_train_end: the final checkpoint is saved there, and belongs before the end.
        if stage == "fit" and trainer.is_global_zero:
            self._end(trainer, "finished", None)

    def _end(self, trainer: Trainer, reason: str, detail: str | None) -> None:
        self._capture.remove()
        if not self._open:
            return
        best = trainer.checkpoint_callback
        path, score = getattr(best, "best_model_path", ""), getattr(best, "best_model_score", None)
        self.write(
            "end", reason=reason, detail=detail, tokens=self.tokens,
            seconds=round(self._seconds(), 3),
            best_checkpoint=Path(path).name if path else None,
            best_score=float(shortest(score)) if score is not None else None,
        )  # fmt: skip
        self.durable()
        self.journal.close()
        self._open = False

    def _seconds(self) -> float:
        """Time spent between start and now, in this attempt and in those it goes on from."""
        return self._seconds_before + (time.monotonic() - self._began if self._began else 0.0)

    def _warned(self, fields: dict[str, Any]) -> None:
        if self._open:
            self.write("warning", **fields)
        else:
            self._early.append(fields)

    # -- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"validated": self._validated, "tokens": self.tokens, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validated = state_dict["validated"]
        self.tokens = state_dict["tokens"]
        self._seconds_before = state_dict["seconds"]


def note(trainer: Trainer, values: Mapping[str, float | Tensor]) -> None:
    """Put a callback's metrics into the row of this step; without a `MetricsFile` they are for nobody.

    Not ``self.log``: that takes about 0.3 ms a value here, and Lightning then looks at each one after every step.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, MetricsFile):
            callback.note(values)


def to_floats(values: Mapping[str, float | Tensor]) -> Row:
    """Scalars as Python floats, those on a device fetched at once."""
    tensors = {name: value.detach().reshape(()) for name, value in values.items() if isinstance(value, Tensor)}
    fetched: dict[str, float] = {}
    if tensors:
        device = next(iter(tensors.values())).device
        alike = [
            tensor.to(device) if tensor.is_floating_point() else tensor.to(device).float()
            for tensor in tensors.values()
        ]
        fetched = dict(zip(tensors, torch.stack(alike).tolist(), strict=True))
    exact = {name for name, tensor in tensors.items() if tensor.dtype == torch.float64}
    return {
        name: fetched[name] if name in exact else shortest(fetched.get(name, value)) for name, value in values.items()
    }


def shortest(number: Any) -> float:
    """The float with the fewest digits that is the same number in float32: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(number)))


def why(exception: BaseException) -> tuple[str, str | None]:
    """The reason an ``end`` event gives: ``stopped`` by a signal, or ``error``."""
    if isinstance(exception, KeyboardInterrupt):
        return "stopped", "SIGINT"
    if isinstance(exception, SystemExit) and isinstance(exception.code, int) and exception.code > 128:
        return "stopped", signal.Signals(exception.code - 128).name
    return "error", f"{type(exception).__name__}: {exception}"
