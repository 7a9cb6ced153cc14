"""Show how far the run is: a bar if stderr is a terminal, else a plain line per row of metrics."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tinytf.run.callbacks.journal import Row, journal_of

REFRESH_SECONDS = 0.5
"""A drawing takes about 2 ms of the main thread."""

EVALUATING = {"validate": "validating", "test": "testing", "predict": "predicting"}


class StepProgress(ProgressBar):
    """Step of steps, loss, validation loss, tokens per second, time left; on stderr. Added automatically.

    It shows the floats of the journal's last row, so that it never waits for a GPU. The time left counts validations
    and saves too, and none of the steps before a resume.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_enabled = True
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._drawn = 0.0
        self._printed = -1
        self._begin(0)

    def _begin(self, step: int) -> None:
        self._first, self._began = step, time.monotonic()
        self._compiled = False

    def enable(self) -> None:
        self.is_enabled = True

    def disable(self) -> None:
        self.is_enabled = False
        self._close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        text = kwargs.get("sep", " ").join(map(str, args))
        with self._while_there():
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=sys.stderr)

    @contextlib.contextmanager
    def _while_there(self) -> Iterator[None]:
        """Show no more once stderr is gone: a closed terminal (EIO) must not end a run that is about to save."""
        try:
            yield
        except OSError:
            self.is_enabled, self._bar = False, None

    # -- training ----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._printed = trainer.global_step
        self._begin(trainer.global_step)
        self._open("training", trainer.global_step, trainer.max_steps)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self._compiled and trainer.global_step > self._first:
            # The first step may compile for half a minute, which says nothing of the others.
            self._begin(trainer.global_step)
            self._compiled = True
        if self._bar is not None:
            self._draw(trainer.global_step, self._numbers(trainer, with_step=False))
        elif self.is_enabled and self._due(trainer):
            self._say(trainer)

    def _due(self, trainer: Trainer) -> bool:
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(step != self._printed and every and step % every == 0)

    def _say(self, trainer: Trainer) -> None:
        self._printed = trainer.global_step
        self.print(self._numbers(trainer, with_step=True))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._draw(trainer.global_step, self._numbers(trainer, with_step=False), force=True)
        elif self.is_enabled and trainer.global_step != self._printed:
            self._say(trainer)

    def _numbers(self, trainer: Trainer, with_step: bool) -> str:
        row = latest_row(trainer)
        parts = [step_of(trainer)] if with_step else []
        parts += [
            f"{label} {row[name]:.4f}" for label, name in (("loss", "train/loss"), ("val", "val/loss")) if name in row
        ]
        if "train/tokens_per_sec" in row:
            parts.append(f"{row['train/tokens_per_sec']:,.0f} tok/s")
        left = self._seconds_left(trainer)
        if left is not None:
            parts.append(f"eta {clock(left)}")
        return "  ".join(parts)

    def _seconds_left(self, trainer: Trainer) -> float | None:
        done = trainer.global_step - self._first
        if trainer.max_steps < 0 or done <= 0:
            return None
        return (time.monotonic() - self._began) / done * (trainer.max_steps - trainer.global_step)

    # -- evaluating --------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_began = time.monotonic()
        if trainer.state.fn != "fit":
            self._open(EVALUATING[command_of(trainer)], 0, evaluation_batches(trainer))

    on_test_start = on_predict_start = on_validation_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "fit":
            self._draw(trainer.global_step, f"validating {batch_idx + 1}/{evaluation_batches(trainer)}")
        else:
            self._draw(batch_idx + 1, "")

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._close()
        elif self._bar is None and self.is_enabled and not trainer.sanity_checking:
            row = latest_row(trainer)
            loss = f"loss {row['val/loss']:.4f}, " if "val/loss" in row else ""
            took = time.monotonic() - self._evaluation_began
            self.print(f"{step_of(trainer)}  validation: {loss}{took:.1f} s")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    # -- the bar -----------------------------------------------------------------------------------------------

    def _open(self, what: str, done: int, total: int | float) -> None:
        console = Console(stderr=True)
        if not self.is_enabled or not console.is_terminal or console.is_dumb_terminal:
            return
        self._close()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}" if 0 < total < float("inf") else "{task.completed:.0f}"),
            TextColumn("{task.fields[numbers]}"),
        )
        # Drawn from the training thread at its own pace: a drawing thread of rich's would interrupt it.
        self._bar = Progress(*columns, console=console, auto_refresh=False)
        known = total if 0 < total < float("inf") else None
        self._task = self._bar.add_task(what, total=known, completed=done, numbers="")
        self._bar.start()

    def _draw(self, done: int, numbers: str, force: bool = False) -> None:
        now = time.monotonic()
        if self._bar is None or (now - self._drawn < REFRESH_SECONDS and not force):
            return
        self._drawn = now
        with self._while_there():
            self._bar.update(self._task, completed=done, numbers=numbers, refresh=True)

    def _close(self) -> None:
        if self._bar is not None:
            with self._while_there():
                self._bar.refresh()
                self._bar.stop()
            self._bar = None


def progress_bar(enabled: bool | None, given: Sequence[Callback]) -> list[Callback]:
    """Ours, unless it is turned off (None is Lightning's word for on) or the user gave another."""
    return [] if enabled is False or any(isinstance(each, ProgressBar) for each in given) else [StepProgress()]


def latest_row(trainer: Trainer) -> Row:
    """The last value of each metric; nothing without a journal."""
    journal = journal_of(trainer)
    return journal.latest if journal else {}


def step_of(trainer: Trainer) -> str:
    """``step 5/100``."""
    total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
    return f"step {trainer.global_step}{total}"


def command_of(trainer: Trainer) -> str:
    """fit, validate, test or predict."""
    assert trainer.state.fn is not None
    return str(trainer.state.fn.value)


def evaluation_batches(trainer: Trainer) -> int | float:
    """Batches of the evaluation in all: Lightning keeps a number for each dataloader."""
    kind = command_of(trainer)
    counts: Any = getattr(trainer, f"num_{kind if kind in ('test', 'predict') else 'val'}_batches")
    total: int | float = sum(counts) if isinstance(counts, list) else counts
    return total


def clock(seconds: float) -> str:
    """``3:12``, or ``1:02:03`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
