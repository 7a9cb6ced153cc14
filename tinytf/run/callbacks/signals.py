"""Stop on a signal: finish the step, save, exit 128 + its number."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from tinytf.run.callbacks import steps_remain
from tinytf.run.callbacks.checkpoints import PeriodicCheckpoint

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
"""SIGUSR1 is SLURM's before a requeue. Windows has the first two alone."""

IMPATIENT_AFTER = 1.0
"""Seconds after which a second Ctrl-C ends the run unsaved. One Ctrl-C under make, docker or uv arrives twice, from the
terminal and from the parent, 6 ms apart."""

log = logging.getLogger(__name__)


class GracefulStop(Callback):
    """Save and exit at SIGTERM, SIGINT, SIGHUP or SIGUSR1 while training; added automatically.

    Lightning's own handling exits 0, saves in the middle of an accumulation, and hangs if every process of a
    group gets the signal. Here the handler sets a flag; all processes agree on it between two steps.

    Args:
        periodic: what saves.
    """

    def __init__(self, periodic: PeriodicCheckpoint) -> None:
        self.periodic = periodic
        self.received = 0
        self._received_at = 0.0
        self._step = 0
        self.replaced: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        for number in SIGNALS:
            # Under nohup, SIGHUP is ignored, and must stay so.
            if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) is not signal.SIG_IGN:
                self.replaced[number] = signal.signal(number, self._on_signal)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self.replaced.items():
            signal.signal(number, handler)
        self.replaced = {}

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        # Another process may have got the signal, so all ask at each step, and stop at the same one.
        if stepped and trainer.strategy.reduce_boolean_decision(bool(self.received), all=False):
            self._stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        # Alone, do not wait for the end of a validation: the checkpoint says that it is still due. At the last step
        # a resumed run would not come back to it, so there it is finished first. So it is with averaged weights, which
        # have changed places with the model's until it ends.
        swapped = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if self.received and trainer.world_size == 1 and steps_remain(trainer) and not swapped:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        number = self.received or signal.SIGTERM
        if steps_remain(trainer):
            self.periodic.save(trainer)
            name = signal.Signals(number).name
            log.info("%s: saved step %d, stopping; --ckpt_path last goes on", name, trainer.global_step)
            raise SystemExit(128 + number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received == signal.SIGINT == number and now - self._received_at >= IMPATIENT_AFTER:
            raise SystemExit(128 + number)
        if number != self.received:
            self.received, self._received_at = number, now
        log.info("%s: stopping after this step", signal.Signals(number).name)
