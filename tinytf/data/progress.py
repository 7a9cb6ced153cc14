"""Progress of work over bytes, on stderr: a bar on a terminal, a plain line elsewhere, nothing for short work."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

QUIET_SECONDS = 1.0
LINE_SECONDS = 30.0


class ByteProgress:
    """Counts bytes done; shows itself only once the work has lasted a second."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done, self.skipped = label, total, 0, 0
        self._started = time.monotonic()
        self._next = self._started + QUIET_SECONDS
        self._bar: Progress | None = None

    def advance(self, n_bytes: int) -> None:
        """Count bytes that are done, and show it where that is due."""
        self.done += n_bytes
        now = time.monotonic()
        if now < self._next:
            return
        if not sys.stderr.isatty():
            self._line(now)
            self._next = now + LINE_SECONDS
            return
        if self._bar is None:
            self._bar = _bar()
            self._bar.start()
            self._bar.add_task(self.label, total=self.total or None, completed=self.skipped)
        self._bar.update(self._bar.task_ids[0], completed=self.done)
        self._next = now + 0.1

    def skip(self, n_bytes: int) -> None:
        """Count what was done before: part of the whole, not of the speed."""
        self.done += n_bytes
        self.skipped += n_bytes

    def finish(self) -> None:
        """Show the end, where the beginning was shown."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done)
            self._bar.stop()
        elif now - self._started > QUIET_SECONDS:
            self._line(now)

    def _line(self, now: float) -> None:
        rate = (self.done - self.skipped) / 1e6 / max(now - self._started, 1e-9)
        share = f"{self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB" if self.total else f"{self.done / 1e6:.1f} MB"
        print(f"{self.label}: {share}, {rate:.1f} MB/s", file=sys.stderr, flush=True)


@contextmanager
def byte_progress(label: str, total: int) -> Iterator[ByteProgress]:
    """Progress of a piece of work over ``total`` bytes (0 where that is not known)."""
    progress = ByteProgress(label, total)
    try:
        yield progress
    finally:
        progress.finish()


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
