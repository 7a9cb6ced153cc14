"""A real `tinytf fit` in a process group of its own, for signals to be sent to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.stress.campaign import arguments

PATIENCE = 120.0
"""Seconds until a process that does not come to an end fails its test; a hang is what the tests look for."""


class Fit:
    """``python -m tinytf fit`` on the stress campaign's text, with its settings and some of its own."""

    def __init__(self, folder: Path, settings: dict[str, Any], *flags: str) -> None:
        self.folder = folder
        self.log = folder / "said.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tinytf", *arguments(settings), *flags],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def until_step(self, step: int) -> Fit:
        """Wait until the journal is at an optimizer step."""
        deadline = time.monotonic() + PATIENCE
        while step_of(self.folder) < step:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.005)
        return self

    def signal_group(self, number: int) -> Fit:
        """As schedulers and terminals do: every process of the group."""
        os.killpg(self.process.pid, number)
        return self

    def signal(self, number: int) -> Fit:
        self.process.send_signal(number)
        return self

    def other(self) -> int:
        """The pid of the one process that the first started to train."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        # On Python 3.14 a fork server and its resource tracker are children too.
        (pid,) = [pid for pid in children if b"multiprocessing" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return int(pid)

    def ended(self) -> int:
        """The exit code; a process that hangs is killed, and fails the test."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"it hangs:\n{self.said()}") from None

    def said(self) -> str:
        return self.log.read_text()


def newest_run(folder: Path) -> Path | None:
    runs = sorted(folder.glob("checkpoints/killed/version_*"), key=lambda run: int(run.name.split("_")[1]))
    return runs[-1] if runs else None


def events(folder: Path, event: str | None = None) -> list[dict[str, Any]]:
    run = newest_run(folder)
    journal = run / "metrics.jsonl" if run else None
    if journal is None or not journal.exists():
        return []
    whole = (line for line in journal.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n"))
    records = [json.loads(line) for line in whole]
    return [record for record in records if event in (None, record["event"])]


def step_of(folder: Path) -> int:
    """The step of the last training row; -1 before the first."""
    return max((row["step"] for row in events(folder, "metrics")), default=-1)
