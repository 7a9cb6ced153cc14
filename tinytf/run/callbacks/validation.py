"""When a run validates besides its interval, and what its validations cost."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.run.callbacks import steps_remain

LARGEST_SHARE = 0.2
"""Of a run's time that is spent validating, by the settings that the warning proposes."""

WORTH_A_LINE = 30.0
"""Seconds of validations to come below which nobody minds them."""

log = logging.getLogger(__name__)


class Validation(Callback):
    """Validate after the last step too, whatever ``val_check_interval`` is, so that every run has a best checkpoint.

    Also warn, once, of validations that take longer than the training between them. Added automatically.
    """

    def __init__(self) -> None:
        self._interval: Any = None
        self._began, self._started, self._first = 0.0, 0.0, 0
        self._timed = self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first, self._timed = trainer.global_step, False

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not self._timed and trainer.global_step > self._first:
            # From the end of the first step on, which may compile for half a minute.
            self._began, self._first, self._timed = time.monotonic(), trainer.global_step, True
        if not steps_remain(trainer) and trainer.enable_validation:
            # Lightning asks right after this hook whether a validation is due. trainer.should_stop would have it
            # validate too, but a checkpoint says by that whether EarlyStopping ended the run.
            self._interval, trainer.val_check_batch = trainer.val_check_batch, 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()
        # Before anything is saved: in a run that is extended, no validation is due here.
        if self._interval is not None:
            trainer.val_check_batch, self._interval = self._interval, None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.global_step - self._first
        if trainer.sanity_checking or trainer.state.fn != "fit" or self._warned or not self._timed or steps <= 0:
            return
        step_seconds, took = (self._started - self._began) / steps, time.monotonic() - self._started
        # Not val_check_interval, which counts epochs in a plain Trainer.
        interval = float(trainer.val_check_batch or math.inf) / trainer.accumulate_grad_batches
        to_come = math.ceil((trainer.max_steps - trainer.global_step) / interval) * took
        if took <= interval * step_seconds or to_come < WORTH_A_LINE:
            return
        self._warned = True
        allowed = LARGEST_SHARE / (1 - LARGEST_SHARE)  # Seconds of validation for each second of training.
        batches = sum(trainer.num_val_batches)
        log.warning(
            "validation takes %.1f s, and the %d steps between two take %.1f s. Validations would be %.0f %% of the "
            "time with trainer.val_check_interval %d, or with trainer.limit_val_batches %d of %s",
            took, interval, interval * step_seconds, 100 * LARGEST_SHARE,
            min(trainer.max_steps, math.ceil(took / allowed / step_seconds)),
            max(1, int(batches * allowed * interval * step_seconds / took)), batches,
        )  # fmt: skip
