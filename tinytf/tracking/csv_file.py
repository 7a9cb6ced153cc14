"""metrics.csv: the journal's rows for a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from tinytf.tracking.jsonl import Record
from tinytf.tracking.tracker import row_of


class CsvFile(Logger):
    """Writes ``metrics.csv``: ``step``, then a column a metric.

    Not Lightning's CSVLogger: that one deletes the file of the attempt before. This one is made anew from the
    journal when a run goes on, and appended to after that.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.path = Path(run_dir) / "metrics.csv"
        self.columns = ["step"]

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def go_on(self, records: Iterable[Record]) -> None:
        """Write the file anew from the journal's records, which is where it may have got ahead."""
        rows = [{"step": record["step"], **row_of(record)} for record in records if record["event"] == "metrics"]
        self.columns = list(dict.fromkeys(["step", *(name for row in rows for name in row)]))
        self._rewrite(rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        new = [name for name in metrics if name not in self.columns]
        if new:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self.columns += new
            self._rewrite(rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow({"step": step, **metrics})

    def _rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(".metrics.csv.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Nothing: a table of numbers has no place for them, and config.yaml lies beside it."""

    def log_text(self, name: str, text: str, step: int) -> None:
        """Nothing, for the same reason."""

    def log_best(self, path: Path) -> None:
        """Nothing: the checkpoint lies beside it."""

    def log_export(self, folder: Path) -> None:
        """Nothing: it lies beside it."""
