"""A tracker is never the run: each is given the journal's records by a thread of its own, and may fail or hang.

The journal is the queue: it is on disk, has no bound, and outlives the process, so that `tinytf sync` can send later
what a tracker did not take during the run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger, Logger

from tinytf.run.journal import FILE_NAME, Record, read_from
from tinytf.run.loggers.base import OtherLogger, Tracker
from tinytf.utils.files import shorten
from tinytf.utils.text import public

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds before a tracker that failed is tried again; doubled each time."""

SILENCE = 10.0
"""Seconds without an answer after which a tracker counts as failed, though its call still runs."""

CONNECT = 5.0
"""Seconds that ``logger.experiment`` waits for the tracker at the start."""

END_OF_RUN, END_OF_STOPPED_RUN, END_OF_FILE = 15.0, 5.0, 300.0
"""Seconds that the end of a run waits for a tracker: for rows, for rows after a signal (schedulers kill 30 s after
SIGTERM), and for a file while it is sent."""

AT_ONCE = 1000
"""Records that are read from the journal at a time."""

LONGEST_REASON = 300

log = logging.getLogger(__name__)


class Follower(Logger):
    """What a Trainer has in place of a tracker: it follows the journal, and gives the tracker its records.

    `trainer.logger` still behaves as the logger itself: attributes and ``isinstance`` are the logger's, and what other
    callbacks log to it is given to it too, on the same thread.

    Args:
        logger: the tracker's Lightning logger.
        run_dir: the run directory.
    """

    def __init__(self, logger: Logger, run_dir: Path) -> None:
        self.logger = logger
        self.tracker = logger if isinstance(logger, Tracker) else OtherLogger(logger)
        self.run_dir = run_dir
        self._journal: Path | None = None
        self._position = 0
        self._pending: deque[Record] = deque()
        # Not in the journal, so not kept for ever: a LearningRateMonitor logs once a step.
        self._calls: deque[Callable[[], Any]] = deque(maxlen=10_000)
        self._thread: threading.Thread | None = None
        self._wake, self._tried, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._connected = self._warned = self._failed = self._sends_file = False
        self._asked_at: float | None = None

    # -- what the journal's callback calls ---------------------------------------------------------------------

    def follow(self, journal: Path, attempt: int) -> None:
        """Begin to give records to the tracker: all, or those of this attempt if it does not know what it has.

        Args:
            journal: the file.
            attempt: the byte at which this attempt's records begin.
        """
        self._position = 0 if self.tracker.takes_history else attempt
        self._journal = journal
        self._start()
        self._wake.set()

    def wake(self) -> None:
        """There is something new in the journal."""
        self._wake.set()
        asked_at = self._asked_at  # Once: the thread sets it to None when it is answered.
        if asked_at is not None and time.monotonic() - asked_at > SILENCE:
            self._fails(TimeoutError(f"it has not answered for {SILENCE:.0f} s"))

    # -- what Lightning and other callbacks call ---------------------------------------------------------------

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.logger)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["logger"], name)

    @property
    def experiment(self) -> Any:
        """The logger's, or, if the tracker cannot be reached, one that ignores every call."""
        if self._thread is None:
            self._start()
        self._tried.wait(CONNECT)
        self._tried.set()  # One that hangs is waited for once, not at each call.
        return self.logger.experiment if self._connected else DummyLogger().experiment  # type: ignore[attr-defined]

    @property
    def name(self) -> str | None:
        return self.logger.name if self._connected else ""  # An MLFlowLogger asks its server.

    @property
    def version(self) -> int | str | None:
        return self.logger.version if self._connected else ""

    @property
    def save_dir(self) -> str | None:
        return self.logger.save_dir

    @property
    def log_dir(self) -> str | None:  # trainer.log_dir, where profilers write.
        return self.logger.log_dir

    @property
    def root_dir(self) -> str | None:
        return self.logger.root_dir

    @property
    def group_separator(self) -> str:
        return self.logger.group_separator

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Give the tracker metrics that are not in the journal, as Lightning's own callbacks have."""
        self._call(self.logger.log_metrics, dict(metrics), step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._call(self.logger.log_hyperparams, params, *args, **kwargs)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self._call(self.logger.after_save_checkpoint, checkpoint_callback)

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """Here, not on the thread: it runs the model."""
        try:
            self.logger.log_graph(*args, **kwargs)
        except Exception as error:
            self._fails(error)

    def save(self) -> None:
        """Nothing: the thread saves after each row."""

    def finalize(self, status: str) -> None:
        """Wait, for a bounded time, until the tracker has the run."""
        if self._thread is not None:
            self._call(self.logger.finalize, status)
            self._finish(END_OF_STOPPED_RUN if status == "failed" else END_OF_RUN)

    def log_export(self, folder: Path) -> None:
        """Give the tracker an export, and wait for a bounded time."""
        self._call(self._send_file, self.tracker.log_export, folder)
        self._finish(END_OF_RUN)

    # -- the thread --------------------------------------------------------------------------------------------

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._calls.append(partial(function, *args, **kwargs))
        self._wake.set()

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._closing.clear()
            # A daemon: a call that hangs does not keep the process from ending.
            self._thread = threading.Thread(target=self._work, name=self.tracker.key, daemon=True)
            self._thread.start()

    def _finish(self, seconds: float) -> None:
        self._start()
        assert self._thread is not None
        warned, began = self._warned, time.monotonic()
        self._closing.set()
        self._wake.set()
        while self._thread.is_alive():
            if time.monotonic() - began > (END_OF_FILE if self._sends_file else seconds):
                break
            self._thread.join(0.05)
        if self._thread.is_alive() or (self._failed and warned):
            log.warning("%s: it has not got all of the run; %s", self.tracker.key, self._remedy(ended=True))

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            self._wake.clear()  # First: `_finish` sets both, and cleared after it, the wait below would not end.
            closing = self._closing.is_set()  # Before the journal is read: what was written before it is sent.
            self._failed = not self._catch_up()
            if closing:
                return
            if self._failed:
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
                self._wake.wait()

    def _catch_up(self) -> bool:
        """Give the tracker what it lacks; False if it failed."""
        try:
            self._asked_at = time.monotonic()
            if not self._connected:
                self.tracker.connect()
                self._connected = True
                self._tried.set()
            while self._read():
                self._asked_at = time.monotonic()
                newest = self._pending[-1]
                self.tracker.send(self._pending)
                if best := best_of(newest, self.run_dir):
                    self._send_file(self.tracker.log_best, best)
            while self._calls:
                self._asked_at = time.monotonic()
                self._calls.popleft()()
        except Exception as error:
            self._connected = False
            if self.tracker.takes_history:
                self._position = 0
                self._pending.clear()
            self._fails(error)
            return False
        finally:
            self._asked_at = None
            self._tried.set()
        if self._warned:
            self._warned = False
            log.info("%s: it answers again, and has all rows", self.tracker.key)
        return True

    def _read(self) -> bool:
        if not self._pending and self._journal is not None and self._journal.exists():
            records, self._position = read_from(self._journal, self._position, AT_ONCE)
            self._pending.extend(records)
        return bool(self._pending)

    def _send_file(self, send: Callable[[Path], None], path: Path) -> None:
        self._sends_file = True
        try:
            send(path)
        finally:
            self._sends_file = False

    def _fails(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s: %s; the run goes on, and %s", self.tracker.key, explain(error), self._remedy())

    def _remedy(self, ended: bool = False) -> str:
        rows = f"its rows are kept in {self.run_dir / FILE_NAME}"
        if not self.tracker.takes_history:
            return rows if ended else f"{rows}, and given to it when it works again"
        later = f"tinytf sync {self.run_dir}"
        return f"{rows}; send them with: {later}" if ended else f"{rows} and sent when it is back, or by: {later}"


def best_of(record: Record, run_dir: Path) -> Path | None:
    """The best checkpoint of a run that has finished, if this record says so and the file is there."""
    if record["event"] != "end" or record.get("reason") != "finished" or not record.get("best_checkpoint"):
        return None
    path = run_dir / Path(record["best_checkpoint"]).name  # Nothing outside the run is sent, whatever a journal says.
    return path if path.is_file() else None


def explain(error: BaseException) -> str:
    """Why a tracker failed, in one line: what the system says, if the error comes from there."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno and cause.strerror:
            return str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    # Not public later: of an address that is cut before its "@", nobody sees that it has a password.
    return shorten(public(" ".join(str(error).split())) or type(error).__name__, LONGEST_REASON)
