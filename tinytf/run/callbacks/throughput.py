"""Log tokens per second, the share of the hardware's peak that they use, memory, and waiting for data."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.run.callbacks.journal import log_to_row
from tinytf.training.optim.groups import flops_per_token
from tinytf.training.peak_flops import peak_flops

if sys.platform != "win32":
    import resource


class Throughput(Callback):
    """Log, in the row of each logging step, what the steps since the last one cost.

    - ``train/tokens_per_sec``: over the time of training steps, data and logging; validation, saving and the first
      step (which compiles) are left out.
    - ``train/mfu``: model FLOPs utilization (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), the FLOPs that
      the model needs over those that the device could do; absent if its peak is unknown.
    - ``train/data_wait``: share of the time from the end of one step to the start of the next.
    - ``system/memory_gb``, ``system/gpu_memory_gb``: the process's largest resident memory so far and the largest
      that tensors on the GPU took, in GiB. Windows does not tell the first.
    """

    def __init__(self) -> None:
        self.peak: float | None = None
        self._reset()
        self._step = -1
        self._started = 0.0
        self._ended: float | None = None
        self._paused = True
        self._writing = False

    def _reset(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._waited = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.peak = peak_flops(pl_module.device)
        self._reset()
        self._step = trainer.global_step
        self._ended = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._started = time.perf_counter()
        if self._ended is not None and not self._paused:
            between = self._started - self._ended
            self._seconds += between
            # After a logging step the time went into writing its row.
            self._waited += 0.0 if self._writing else between
        self._paused = self._writing = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        logging = self._logging_step(trainer)
        if logging and pl_module.device.type == "cuda":
            # The row's values are about to be fetched, which would wait for the GPU anyway.
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        if self._ended is not None:
            self._seconds += now - self._started
            self._tokens += batch[0].numel() * trainer.world_size
        self._ended = now
        if logging:
            self._log(trainer, pl_module, seq_len=batch[0].shape[-1])

    def _logging_step(self, trainer: Trainer) -> bool:
        stepped = trainer.global_step != self._step
        self._step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(stepped and every and self._step % every == 0 and trainer.is_global_zero)

    def _log(self, trainer: Trainer, pl_module: LightningModule, seq_len: int) -> None:
        values = {"system/memory_gb": resident_gb()} if sys.platform != "win32" else {}
        if self._seconds:
            speed = self._tokens / self._seconds
            values["train/tokens_per_sec"] = speed
            values["train/data_wait"] = self._waited / self._seconds
            if self.peak is not None:
                model: Any = pl_module.model
                mfu = speed * flops_per_token(model, seq_len) / (self.peak * trainer.world_size)
                # Over 1, the peak was measured too low, on a processor that was busy: it is unknown, not exceeded.
                values |= {"train/mfu": mfu} if mfu <= 1 else {}
        if pl_module.device.type == "cuda":
            values["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
        log_to_row(trainer, values)
        self._reset()
        self._writing = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._pause(pl_module)

    def _pause(self, pl_module: LightningModule) -> None:
        """Count no time until the next step starts, but all of the work that the GPU still has queued."""
        if self._paused or self._ended is None:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
            self._seconds += time.perf_counter() - self._ended
        self._paused = True


def resident_gb() -> float:
    """The largest resident memory that this process had so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
