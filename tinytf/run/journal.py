"""A run's journal: strict JSON, one object a line, on disk before anything that depends on it.

No torch in here: `tinytf runs` reads journals and must start at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tinytf.errors import UserError
from tinytf.utils.files import fsync_dir
from tinytf.utils.text import strict, utc_now

Record = dict[str, Any]

FILE_NAME = "metrics.jsonl"


class Journal:
    """Appends records to a file; each is in the operating system's hands when `write` returns.

    A line is one `write(2)` on a file opened for appending: a killed process leaves whole lines (at worst a torn
    last one, where the disk filled up), and no other thread's line in between.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def write(self, event: str, step: int, fields: Mapping[str, Any]) -> None:
        """Append one record: ``event``, ``time`` (now), ``step``, then the fields.

        Raises:
            TypeError: at values that JSON has no form for.
        """
        record = {"event": event, "time": utc_now(), "step": step, **fields}
        data = encode(record)
        descriptor = self._opened()
        while data:
            data = data[os.write(descriptor, data) :]

    def records(self) -> Iterator[Record]:
        """What the file holds, oldest first; nothing where there is none yet."""
        return read(self.path) if self.path.exists() else iter(())

    def last_event(self) -> str | None:
        """Of the last whole line; None where there is none."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        events = (record["event"] for line in reversed(lines) if (record := decode(line)))
        return next(events, None)

    def durable(self) -> None:
        """Return when every record so far would survive a power cut."""
        os.fsync(self._opened())

    def close(self) -> None:
        """Close the file; nothing where it is closed already."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def rewind(self, keep: Callable[[Record], bool]) -> int:
        """Drop the records that `keep` refuses, and the lines that are no record, in one atomic replacement.

        Lines without a record are what a power cut leaves behind the last `durable`; their number is returned.
        """
        self.close()
        if not self.path.exists():
            return 0
        dropped = broken = 0
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with self.path.open("rb") as old, temporary.open("wb") as new:
            for line in old:
                record = decode(line)
                broken += record is None
                if record is not None and keep(record):
                    new.write(line)
                else:
                    dropped += 1
            new.flush()
            os.fsync(new.fileno())
        if dropped:
            temporary.replace(self.path)
            fsync_dir(self.path.parent)
        else:
            temporary.unlink()
        return broken

    def _opened(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            fsync_dir(self.path.parent)
        return self._descriptor


def encode(record: Mapping[str, Any]) -> bytes:
    """One line of strict JSON in UTF-8; floats that are not finite become "NaN", "Infinity", "-Infinity"."""
    text = json.dumps(strict(record), allow_nan=False, ensure_ascii=False, separators=(", ", ": "))
    # A lone surrogate, which UTF-8 has no bytes for, comes out as \udc80: JSON's own escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def decode(line: bytes) -> Record | None:
    """The record of a line, or None where the line is not a whole one."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("event"), str) and isinstance(record.get("step"), int)
    return record if whole else None


def read(path: Path) -> Iterator[Record]:
    """The records of a journal; a torn last line is not one, because its run may be writing it right now.

    Raises:
        UserError: at a broken line elsewhere.
    """
    with path.open("rb") as file:
        broken = 0
        for number, line in enumerate(file, 1):
            record = decode(line)
            if broken:
                raise UserError(f"{path}, line {broken}: it is not a JSON record; mend or remove that line")
            if record is None:
                broken = number
            else:
                yield record
