"""Where a check runs: a folder, a device, and how much of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """A check's own folder.

    Args:
        folder: empty at first.
        device: cuda, or cpu for a dry run.
        corpus: tiny Shakespeare's file, or any text.
        small: sizes for a dry run, which take seconds on one core.
    """

    folder: Path
    device: str
    corpus: str
    small: bool

    def tinytf(self, *arguments: str, code: int = 0) -> tuple[str, float]:
        """Run a command here as a user does; what it said on both streams, and its seconds."""
        print(*arguments, flush=True)  # Of a check that is cut off, its log says where it was.
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "tinytf", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(REPOSITORY), os.environ.get("PYTHONPATH", "")))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, f"{arguments} exited {done.returncode}, not {code}:\n{said[-3000:]}"
        return said, time.perf_counter() - began

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The journal of the newest run of a name."""
        runs = self.folder.glob(f"checkpoints/{name}/version_*")
        newest = max(runs, key=lambda run: int(run.name.partition("_")[2]))
        return [json.loads(line) for line in (newest / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
