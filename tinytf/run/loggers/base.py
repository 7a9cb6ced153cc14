"""What every tracker does with a run, whatever program shows it afterwards, and the trackers that a config asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer

from tinytf.run.journal import OUTSIDE_ROW, Record
from tinytf.utils.text import flatten


@runtime_checkable
class Tracker(Protocol):
    """A Lightning logger that can also resume where a journal was rewound to, and show text and files."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """One row of numbers, under the names of metrics.jsonl."""

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """The resolved config, flat: ``{"model.d_model": 256, …}``."""

    def log_text(self, name: str, text: str, step: int) -> None:
        """A piece of Markdown."""

    def log_best(self, path: Path) -> None:
        """The best checkpoint, once the run has ended."""

    def log_export(self, folder: Path) -> None:
        """The exported bundle, if the run makes one."""

    def on_resume(self, records: Iterable[Record]) -> None:
        """Called before the first row with the records of the journal; after a resume, none is newer."""


def trackers(trainer: Trainer) -> list[Tracker]:
    """Those of a trainer's loggers that are ours; any other Lightning logger gets the metrics alone."""
    return [logger for logger in trainer.loggers if isinstance(logger, Tracker)]


def row_of(record: Record) -> dict[str, float]:
    """The metrics of a journal's record; "NaN" and "Infinity" become floats again."""
    return {name: float(value) for name, value in record.items() if name not in OUTSIDE_ROW}


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as dotted keys with plain values; lists as they are written, None as "null"."""
    plain = (bool, int, float, str)
    return {
        key: value if isinstance(value, plain) else "null" if value is None else str(value)
        for key, value in flatten(config)
    }


def as_code_block(text: str) -> str:
    """Text as a Markdown code block, whatever is in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
