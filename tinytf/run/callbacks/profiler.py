"""Trace a few steps with PyTorch's profiler, and print what cost most in them."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, schedule

from tinytf.errors import require_at_least
from tinytf.run.callbacks import run_dir_of

log = logging.getLogger(__name__)

COSTLIEST = 10


class Profiler(Callback):
    """Write ``profile/steps_<first>-<last>.json.gz`` (for ui.perfetto.dev) and print the costliest operators.

    Not Lightning's PyTorchProfiler: that one counts micro-batches and validation batches, not optimizer steps,
    marks every hook of the whole run and not of the traced steps alone, and prints to stdout when the run ends.
    It stands first in the list of callbacks, so that the others' work at a step's end is in the trace of the next.

    Args:
        start_step: the first step in the trace, counted from where the process starts; later than what warms up.
        steps: optimizer steps in the trace, with the validations between them; 0 traces none.
    """

    def __init__(self, start_step: int = 12, steps: int = 0) -> None:
        require_at_least("tracking.profile", start_step=(start_step, 1), steps=(steps, 0))
        self.start_step = start_step
        self.steps = steps
        self._profiler: profile | None = None
        self._begin = self._first = self._last = 0
        self._step = 0
        self._done = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._first = self._step + self.start_step
        self._last = self._first + self.steps - 1
        # The profiler's own start is slow, so that the step before the first warms it up.
        self._begin = max(self._first - 1, self._step + 1)
        self._done = not (self.steps and trainer.is_global_zero)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._done or self._profiler is not None or trainer.global_step + 1 < self._begin:
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        with warnings.catch_warnings():
            # A trace from the very first step cannot have a warm-up.
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")
            plan = schedule(wait=0, warmup=self._first - self._begin, active=self.steps, repeat=1)
        self._profiler = profile(activities=activities, schedule=plan, record_shapes=True, acc_events=True)
        self._profiler.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if self._profiler is None or not stepped:
            return
        if self._step >= self._last:
            self._finish(trainer, self._profiler)
        else:
            self._profiler.step()

    def _finish(self, trainer: Trainer, profiler: profile) -> None:
        profiler.stop()
        self._profiler, self._done = None, True
        path = run_dir_of(trainer) / "profile" / f"steps_{self._first:07d}-{self._step:07d}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=COSTLIEST, max_name_column_width=45)
        print(f"{path}\n{table}", file=sys.stderr)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._done:
            return
        if self._profiler is not None and self._step >= self._first:
            log.warning("tracking.profile: the run ended at step %d, before step %d", self._step, self._last)
            self._finish(trainer, self._profiler)
        else:
            log.warning("tracking.profile: the run ended at step %d, before step %d", self._step, self._first)
