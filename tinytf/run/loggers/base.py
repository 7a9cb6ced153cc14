"""What a program that shows runs is given, and how: records of the journal, which say all of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from tinytf.run.journal import OUTSIDE_ROW, Record
from tinytf.utils.text import flatten, seconds_between, strict_json


class Tracker(ABC):
    """A program that shows runs. All of it may fail or hang: a `Follower` calls it on a thread of its own."""

    key = ""
    """What messages call it: the config's key, and the address if it has one."""
    takes_history = True
    """Whether it is given the journal from its first record on, and knows by itself what it has already; then
    `tinytf sync` can send what a run could not."""

    @abstractmethod
    def connect(self) -> None:
        """Reach it, before the first record and after each failure; what was sent since the last one may be lost."""

    @abstractmethod
    def send(self, records: deque[Record]) -> None:
        """Show records, taking from the left those that it has got for certain."""

    def log_best(self, path: Path) -> None:  # noqa: B027 - not every tracker has to
        """Keep the best checkpoint, once the run has ended. TensorBoard keeps no files."""

    def log_export(self, folder: Path) -> None:  # noqa: B027 - not every tracker has to
        """Keep the exported bundle. TensorBoard keeps no files."""

    def close(self) -> None:  # noqa: B027 - not every tracker has to
        """Return when it has all; for `tinytf sync`, whose process ends next."""


class OtherLogger(Tracker):
    """A Lightning logger that knows nothing of journals: it is given the metrics of this attempt, each row once."""

    takes_history = False

    def __init__(self, logger: Logger) -> None:
        self.logger = logger
        self.key = f"trainer.logger {type(logger).__name__}"

    def connect(self) -> None:
        getattr(self.logger, "experiment", None)
        self.logger.save()  # What it took before it failed.

    def send(self, records: deque[Record]) -> None:
        while records:
            is_row = records[0]["event"] == "metrics"
            if is_row:
                self.logger.log_metrics(row_of(records[0]), step=records[0]["step"])
            records.popleft()  # It has the row now, and keeps it if it cannot save it.
            if is_row:
                self.logger.save()


def row_of(record: Record) -> dict[str, float]:
    """The metrics of a journal's record; "NaN" and "Infinity" become floats again."""
    return {name: float(value) for name, value in record.items() if name not in OUTSIDE_ROW}


def unix_time(record: Record) -> float:
    """When a record was written, in seconds: a row that is sent late still stands at its own time."""
    return seconds_between("1970-01-01T00:00:00Z", record["time"])


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as dotted keys with plain values; lists as they are written, None as "null"."""
    plain = (bool, int, float, str)
    return {
        key: value if isinstance(value, plain) else "null" if value is None else str(value)
        for key, value in flatten(config)
    }


def texts_of(record: Record) -> dict[str, str]:
    """What a record says in words, as Markdown by its name: config and provenance of a start, a sample's text."""
    if record["event"] == "sample":
        return {f"sample/{record['index']}": as_code_block(record["prompt"] + record["text"])}
    if record["event"] != "start":
        return {}
    parts = {name: record[name] for name in ("config", "provenance") if name in record}
    return {name: as_code_block(strict_json(value, indent=2)) for name, value in parts.items()}


def as_code_block(text: str) -> str:
    """Text as a Markdown code block, whatever is in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
