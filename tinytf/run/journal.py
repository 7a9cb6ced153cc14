"""A run's journal: strict JSON, one object per line, on disk before anything that depends on it.

No torch in here: `tinytf runs` reads journals and must start at once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tinytf.utils.files import atomic_write, fsync_dir
from tinytf.utils.text import seconds_between, strict_json, utc_now

Record = dict[str, Any]

FILE_NAME = "metrics.jsonl"

FIRST_LINES = 16
"""Lines among which a journal's first whole record is looked for, if a power cut tore the first."""

OUTSIDE_ROW = frozenset({"event", "time", "step"})
"""Keys of a ``metrics`` record that are not metrics."""

NOT_FINITE = ("NaN", "Infinity", "-Infinity")

log = logging.getLogger(__name__)

NONDETERMINISTIC_METRICS = frozenset(
    {"train/tokens_per_sec", "train/mfu", "train/data_wait", "system/memory_gb", "system/gpu_memory_gb"}
)
"""Metrics of the machine. All others are the same in a run that was killed and resumed as in an unbroken one."""


class Journal:
    """Appends records to a file; each is in the operating system's hands when `write` returns.

    A line is one `write(2)` on a file opened for appending: a killed process leaves whole lines (at worst a torn
    last one, if the disk filled up), and no other thread's line in between.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def write(self, event: str, step: int, fields: Mapping[str, Any]) -> None:
        """Append one record: ``event``, ``time`` (now), ``step``, then the fields.

        Raises:
            TypeError: at values that JSON has no form for.
        """
        data = encode({"event": event, "time": utc_now(), "step": step, **fields})
        descriptor = self._open()
        while data:
            data = data[os.write(descriptor, data) :]

    def records(self) -> Iterator[Record]:
        """What the file has, oldest first; nothing if it does not exist."""
        return read(self.path) if self.path.exists() else iter(())

    def sync(self) -> None:
        """Return when every record so far would survive a power cut."""
        os.fsync(self._open())

    def close(self) -> None:
        """Close the file; it opens again at the next `write`."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def rewind(self, keep: Callable[[Record], bool]) -> int:
        """Drop the records that `keep` refuses, and the lines that are no record, in one atomic replacement.

        Returns:
            The number of lines that were no record: what a power cut leaves after the last `sync`.
        """
        self.close()
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        records = [decode(line) for line in lines]
        kept = [line for line, record in zip(lines, records, strict=True) if record is not None and keep(record)]
        if len(kept) < len(lines):
            with atomic_write(self.path) as file:
                file.writelines(kept)
        return records.count(None)

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Without O_BINARY, Windows would write \r\n.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self.path, flags, 0o644)
            fsync_dir(self.path.parent)
        return self._descriptor


def encode(record: Mapping[str, Any]) -> bytes:
    """One line of strict JSON in UTF-8; floats that are not finite become "NaN", "Infinity", "-Infinity"."""
    # A lone surrogate, which UTF-8 has no bytes for, becomes \udc80: JSON's own escape.
    return strict_json(record).encode("utf-8", "backslashreplace") + b"\n"


def decode(line: bytes) -> Record | None:
    """The record of a line, or None if the line is not a whole one."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
        seconds_between(record["time"], record["time"])
        whole = isinstance(record["event"], str) and isinstance(record["step"], int) and _has_its_types(record)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # Of a stranger's journal, anything.
        return None
    return record if whole else None


def _has_its_types(record: Record) -> bool:
    """Whether the fields that readers compute with are what `encode` writes, where there are any."""
    if record["event"] == "metrics":
        numbers = (value for name, value in record.items() if name not in OUTSIDE_ROW)
        # JSON has integers that are too large for a float.
        return all(value in NOT_FINITE or isinstance(value, float) or abs(int(value)) < 2**1000 for value in numbers)
    if record["event"] == "end":
        return isinstance(record.get("reason", ""), str)
    if record["event"] != "start":
        return True
    process, git = record.get("process", {}), record.get("provenance", {}).get("git", {})
    return (
        isinstance(record.get("max_steps", 0), int)
        and (not process or (0 < process["pid"] < 2**31 and isinstance(process["started"], (int, type(None)))))
        and isinstance(git.get("commit"), (str, type(None)))
    )


def read(path: Path) -> Iterator[Record]:
    """The records of a journal; lines that are none, as a power cut leaves, are left out, and a warning counts them.

    A torn last line is no reason for a warning: its run may be writing it right now.
    """
    broken: list[int] = []
    with path.open("rb") as file:
        number = 0
        for number, line in enumerate(file, 1):
            if record := decode(line):
                yield record
            else:
                broken.append(number)
    torn = [line for line in broken if line < number]
    if torn:
        log.warning("%s: %d lines are no records and are left out, the first of them line %d", path, len(torn), torn[0])


def read_from(path: Path, position: int, most: int) -> tuple[list[Record], int]:
    """Up to ``most`` records from a byte on, and the byte after them; a line that is still being written waits."""
    records: list[Record] = []
    with path.open("rb") as file:
        file.seek(position)
        while len(records) < most and (line := file.readline()).endswith(b"\n"):
            position += len(line)
            if record := decode(line):
                records.append(record)
    return records, position


def exit_reason(exception: BaseException) -> tuple[str, str | None]:
    """Reason and detail of an ``end`` event: ``stopped`` by a signal, or ``error``."""
    if isinstance(exception, KeyboardInterrupt):
        return "stopped", "SIGINT"
    code = exception.code if isinstance(exception, SystemExit) else None
    if isinstance(code, int) and code - 128 in {*signal.Signals}:  # exit(255) is no signal's.
        return "stopped", signal.Signals(code - 128).name
    return "error", f"{type(exception).__name__}: {exception}"


def started_at(run_dir: Path) -> str | None:
    """The time of the journal's first record, which is when the run was started; None without one."""
    try:
        with (run_dir / FILE_NAME).open("rb") as file:
            # Bounded: a start event with its config is a few kilobytes, and a file of zeros has no line end.
            for _ in range(FIRST_LINES):
                record = decode(file.readline(1 << 20))
                if record:
                    return str(record["time"])
    except OSError:
        pass
    return None


def run_id_of(run_dir: Path) -> str:
    """The run's id in remote trackers: that of its journal, or a new one if it has none yet."""
    for record in Journal(run_dir / FILE_NAME).records():
        if record["event"] == "start" and "run_id" in record:
            return str(record["run_id"])
    return uuid.uuid4().hex[:12]
