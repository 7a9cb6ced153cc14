"""The loss watched: smoothed for the eye, a warning when it spikes, the batch kept when it is no number."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.errors import RunError, UserError
from tinytf.run.callbacks import run_dir_of
from tinytf.run.callbacks.journal import log_to_row
from tinytf.training.lightning_module import NonFiniteError
from tinytf.weights.checkpoint import write_checkpoint

log = logging.getLogger(__name__)

WINDOW = 50
"""Logged losses that the median is taken of."""

ENOUGH = 10
"""Logged losses before a median means anything: at the start the loss falls quickly."""


class LossMonitor(Callback):
    """Log ``train/loss_smooth``, and warn once per spike.

    A spike begins when the loss passes ``spike_factor`` times its running median, and ends when it comes back below.

    Args:
        smoothing: share of the old value in train/loss_smooth at each logging step, in [0, 1); 0 logs none.
        spike_factor: warn when train/loss passes this many times its running median; 0 never does.
    """

    def __init__(self, smoothing: float = 0.9, spike_factor: float = 2.0) -> None:
        if not 0 <= smoothing < 1:
            raise UserError(f"tracking.loss.smoothing is {smoothing}, but must be at least 0 and below 1")
        if spike_factor != 0 and not spike_factor > 1:
            raise UserError(f"tracking.loss.spike_factor is {spike_factor}, but must be above 1, or 0")
        self.smoothing = smoothing
        self.spike_factor = spike_factor
        self._smooth: float | None = None
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._spiking = False
        self._step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not stepped or not every or self._step % every or "train/loss" not in trainer.callback_metrics:
            return
        loss = trainer.callback_metrics["train/loss"].item()
        if self.smoothing:
            log_to_row(trainer, {"train/loss_smooth": self._smoothed(loss)})
        if self.spike_factor and trainer.is_global_zero:
            self._watch(loss)

    def _smoothed(self, loss: float) -> float:
        if self._smooth is None or not math.isfinite(self._smooth):
            self._smooth = loss
        else:
            self._smooth = self.smoothing * self._smooth + (1.0 - self.smoothing) * loss
        return self._smooth

    def _watch(self, loss: float) -> None:
        usual = median(self._recent) if len(self._recent) >= ENOUGH else math.inf
        spikes = not loss <= self.spike_factor * usual
        if spikes and not self._spiking:
            log.warning("step %d: train/loss %.4f is %.1f times its median %.4f", self._step, loss, loss / usual, usual)
        self._spiking = spikes
        if math.isfinite(loss):
            self._recent.append(loss)

    def state_dict(self) -> dict[str, Any]:
        return {"smooth": self._smooth, "recent": list(self._recent), "spiking": self._spiking}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._smooth = state_dict["smooth"]
        self._recent = deque(state_dict["recent"], maxlen=WINDOW)
        self._spiking = state_dict["spiking"]


class SaveNonFinite(Callback):
    """Write ``nonfinite-step-….pt`` into the run directory: the step's micro-batches and losses; added automatically.

    ``torch.load(path, weights_only=True)`` gives ``step``, ``message``, ``batches`` (tokens, targets and, if documents
    are kept apart, positions, [B, T] each, as they came from the data) and ``losses`` (one per batch). Every process
    writes its own.
    """

    def __init__(self) -> None:
        self._step = -1
        self._batches: list[Any] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self._step:
            self._step, self._batches = trainer.global_step, []
        self._batches.append(batch)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, NonFiniteError):
            return
        rank = f"-rank-{trainer.global_rank}" if trainer.global_rank else ""
        path = run_dir_of(trainer) / f"nonfinite-step-{self._step + 1:07d}{rank}.pt"
        content = {
            "step": self._step + 1,
            "message": str(exception),
            "batches": [[part.cpu() for part in batch] for batch in self._batches],
            "losses": [loss.cpu() for loss in exception.losses],
        }
        try:
            write_checkpoint(path, content)
        except RunError as error:
            exception.args = (f"{exception}; {error}",)
        else:
            exception.args = (f"{exception}; its batch is in {path}",)
