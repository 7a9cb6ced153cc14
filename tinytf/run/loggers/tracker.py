"""What every tracker does with a run, whatever program shows it afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tinytf.run.journal import Record

OUTSIDE_ROW = frozenset({"event", "time", "step"})
"""Keys of a journal's ``metrics`` record that are no metrics."""


@runtime_checkable
class Tracker(Protocol):
    """A Lightning logger that can also go on where a journal was rewound to, and show text and files."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """One row of numbers, under the names of metrics.jsonl."""

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """The resolved config, flat: ``{"model.d_model": 256, …}``."""

    def log_text(self, name: str, text: str, step: int) -> None:
        """A piece of Markdown."""

    def log_best(self, path: Path) -> None:
        """The best checkpoint, once the run has ended."""

    def log_export(self, folder: Path) -> None:
        """The exported bundle, where the run makes one."""

    def go_on(self, records: Iterable[Record]) -> None:
        """Called before the first row with the records that the journal holds: after a resume, none newer."""


def row_of(record: Record) -> dict[str, float]:
    """The metrics of a journal's record; "NaN" and "Infinity" become floats again."""
    return {name: float(value) for name, value in record.items() if name not in OUTSIDE_ROW}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay as they are written, None is "null"."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, int, float, str)):
            found[f"{prefix}{key}"] = value
        else:
            found[f"{prefix}{key}"] = "null" if value is None else str(value)
    return found


def fenced(text: str) -> str:
    """Text as a Markdown code block, whatever it holds."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
