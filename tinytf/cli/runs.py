"""`tinytf runs`: what was trained here, and how it went. It reads journals alone and imports no torch."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from tinytf.cli.config.flags import CommandParser
from tinytf.errors import UserError
from tinytf.run.directory import version_dirs, version_of
from tinytf.run.journal import FILE_NAME, Record, read
from tinytf.utils.files import user_path
from tinytf.utils.machine import is_alive
from tinytf.utils.text import seconds_between, strict_json, table, utc_now

SILENT_SECONDS = 600.0
"""A run on another machine, whose process cannot be seen from here, counts as running so long after its last record."""

STATES = {"finished": "finished", "stopped": "stopped", "error": "crashed"}
"""What the reason of an ``end`` event makes of a run."""


log = logging.getLogger(__name__)


@dataclass
class RunRow:
    """One run, by its journal.

    Args:
        state: running, finished, stopped early (by EarlyStopping), stopped (by a signal, saved), crashed, empty (it
            has written nothing yet), or unreadable (its journal is damaged, or not one of ours).
        step: the last optimizer step in the journal.
        max_steps: optimizer steps of the whole run; None if it is endless.
        best_val_loss: the lowest; None before the first validation.
        best_step: the step of that loss.
        seconds: from start to last record, the sum over all attempts.
        started: when the first attempt did, UTC.
        commit: of the repository it was started in; None outside one.
        dirty: whether tracked files differed from the commit.
    """

    name: str
    version: int
    state: str = "empty"
    step: int = 0
    max_steps: int | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    started: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    path: str = ""


HEADER = ("name", "version", "state", "step", "val/loss", "at step", "duration", "started (UTC)", "commit")
SORTS = ("started", "name", "state", "step", "best_val_loss", "seconds")


def run(argv: Sequence[str]) -> int:
    """List the runs below a folder on stdout."""
    arguments = parser().parse_args(argv)
    root = user_path(arguments.root, what="--root")
    if not root.is_dir():
        raise UserError(f"--root {root}: there is no such folder; tinytf fit makes it, or give another")
    rows = ordered(map(readable_summary, version_dirs(root)), arguments.sort)
    if arguments.json:
        print(strict_json([asdict(row) for row in rows], indent=2))
    else:
        print(table([HEADER, *map(_cells, rows)]))
    if not rows:
        print(f"no runs in {root}", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    commands = CommandParser(prog="tinytf runs", description="List the runs below a folder, oldest first.")
    commands.add_argument("--root", default="checkpoints", metavar="DIR", help="the folder of all runs")
    commands.add_argument("--sort", default="started", choices=SORTS, help="what to order by; best first for a loss")
    commands.add_argument("--json", action="store_true", help="a JSON list, for programs")
    return commands


def ordered(rows: Iterable[RunRow], key: str) -> list[RunRow]:
    """Ascending by one field, runs that lack it last, equal ones by name and version."""

    def place(row: RunRow) -> tuple[bool, Any, str, int]:
        value = getattr(row, key)
        return value is None, value if value is not None else 0, row.name, row.version

    return sorted(rows, key=place)


def readable_summary(folder: Path) -> RunRow:
    """One run, unreadable if its journal is: one bad journal hides no other run."""
    try:
        return summary(folder)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        log.warning("run %s: its journal cannot be read (%s: %s)", folder, type(error).__name__, error)
        return RunRow(folder.parent.name, version_of(folder), "unreadable", path=str(folder))


def summary(folder: Path) -> RunRow:
    """One run, from its journal."""
    row = RunRow(folder.parent.name, version_of(folder), path=str(folder))
    journal = folder / FILE_NAME
    start: Record | None = None
    last: Record | None = None
    end: Record | None = None
    for record in read(journal) if journal.exists() else ():
        if record["event"] == "start":
            row.seconds += _spent(start, last)
            start, end = record, None
            _begin(row, record)
        elif record["event"] == "end":
            end = record
        elif record["event"] == "metrics" and "val/loss" in record:
            _validated(row, record)
        # A resumed run starts at its checkpoint's step, which may be behind what was written before.
        row.step = record["step"]
        last = record
    row.seconds = round(row.seconds + _spent(start, last), 3)
    if start is not None and last is not None:
        row.state = _ended(end) if end else _unfinished(start, last)
    return row


def _begin(row: RunRow, start: Record) -> None:
    row.started = row.started or start["time"]
    row.max_steps = start["max_steps"] if start.get("max_steps", -1) > 0 else None
    git = start.get("provenance", {}).get("git", {})
    row.commit, row.dirty = git.get("commit"), git.get("dirty")


def _validated(row: RunRow, record: Record) -> None:
    loss = float(record["val/loss"])
    if math.isfinite(loss) and (row.best_val_loss is None or loss < row.best_val_loss):
        row.best_val_loss, row.best_step = loss, record["step"]


def _spent(start: Record | None, last: Record | None) -> float:
    return seconds_between(start["time"], last["time"]) if start and last else 0.0


def _ended(end: Record) -> str:
    return "stopped early" if end.get("stopped_early") is True else STATES.get(end.get("reason", ""), "crashed")


def _unfinished(start: Record, last: Record) -> str:
    """Whether a run without an end still goes on: by its process, or by its silence where that cannot be seen."""
    lives = is_alive(start.get("process", {}))
    if lives is None:
        lives = seconds_between(last["time"], utc_now()) < SILENT_SECONDS
    return "running" if lives else "crashed"


def _cells(row: RunRow) -> tuple[str, ...]:
    return (
        row.name,
        str(row.version),
        row.state,
        f"{row.step}/{row.max_steps}" if row.max_steps else str(row.step),
        f"{row.best_val_loss:.4f}" if row.best_val_loss is not None else "-",
        str(row.best_step) if row.best_step is not None else "-",
        str(timedelta(seconds=round(row.seconds))),
        row.started[:16].replace("T", " ") if row.started else "-",
        (row.commit[:9] + ("+" if row.dirty else "")) if row.commit else "-",
    )
