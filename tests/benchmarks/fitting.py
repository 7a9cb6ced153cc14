"""`tinytf fit` as the benchmarks run it, in this process, and what its journal says."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from tinytf.cli.main import main


def fit(*flags: str, **settings: Any) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of a run, which is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        given = [f"--{key}={value}" for key, value in settings.items()]
        # Its lines would stand between those of the table.
        logging.disable(logging.INFO)
        try:
            code = main(["fit", *flags, f"--checkpoint.dir={folder}", *given])
        finally:
            logging.disable(logging.NOTSET)
        assert code == 0, flags
        (journal,) = Path(folder).glob("*/version_0/metrics.jsonl")
        return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]


def training_seconds(rows: list[dict[str, Any]], tokens_per_step: int) -> list[tuple[int, float]]:
    """(step, seconds of training until then), validation, saving and the first step's compiling left out."""
    found, seconds, before = [], 0.0, 0
    for row in rows:
        if "train/tokens_per_sec" in row:
            seconds += (row["step"] - before) * tokens_per_step / row["train/tokens_per_sec"]
            before = row["step"]
            found.append((before, seconds))
    return found
