"""Stopping on a signal: finish the step, save, exit 128 + its number."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.run.callbacks.checkpoints import PeriodicCheckpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

log = logging.getLogger(__name__)


class GracefulStop(Callback):
    """Handles SIGTERM, SIGINT and SIGUSR1 (SLURM's requeue) while training.

    Lightning's own handling exits 0, saves in the middle of an accumulation, and hangs where every process of a
    group gets the signal. Here the handler sets a flag; all processes agree on it between two steps.

    Args:
        periodic: what saves.
    """

    def __init__(self, periodic: PeriodicCheckpoint) -> None:
        self.periodic = periodic
        self.received = 0
        self.replaced: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.replaced = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self.replaced.items():
            signal.signal(number, handler)
        self.replaced = {}

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.fit_loop._should_accumulate() and self._agreed(trainer):
            self._stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        # Alone, do not wait for the end of a validation: the checkpoint says that it is still due. At the last step
        # a resumed run would not come back to it, so there it is finished first.
        if self.received and trainer.world_size == 1 and trainer.global_step < trainer.max_steps:
            self._stop(trainer)

    def _agreed(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(bool(self.received), all=False)

    def _stop(self, trainer: Trainer) -> None:
        # Another process may have been the one that got the signal.
        number = self.received or signal.SIGTERM
        if trainer.global_step < trainer.max_steps:
            self.periodic.save(trainer)
            log.info("%s: saved step %d, stopping", signal.Signals(number).name, trainer.global_step)
            raise SystemExit(128 + number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise SystemExit(128 + number)
        self.received = number
        log.info("%s: stopping after this step", signal.Signals(number).name)
