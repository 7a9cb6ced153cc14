"""Seconds until a command answers, and until `tinytf fit` has done its first step."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

COMMANDS = ("--version", "--help", "generate --help", "inspect --help", "runs --help", "fit --help")
MODULES = ("numpy", "torch", "torch._dynamo", "lightning.pytorch", "torchmetrics", "jsonargparse", "tokenizers")


def seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - began


def imported(command: str) -> list[str]:
    """Which of the heavy modules a command has imported when it ends."""
    code = (
        "import sys, contextlib, io\nfrom tinytf.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        f"print(*(name for name in {MODULES!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split()], check=True, capture_output=True, text=True)
    return done.stdout.split()


def first_step() -> float:
    """Seconds from the command to its first step in the journal, on configs/tiny.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--trainer.max_steps=1", "--trainer.log_every_n_steps=1", f"--checkpoint.dir={folder}"]
        began = time.time()
        command = [sys.executable, "-m", "tinytf", "fit", "--config", "configs/tiny.yaml", *flags]
        subprocess.run(command, check=True, capture_output=True)
        rows = (Path(folder) / "tiny/version_0/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    times = [datetime.fromisoformat(row["time"].replace("Z", "+00:00")) for row in map(json.loads, rows) if row["step"]]
    return times[0].timestamp() - began


def run(args: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for command in COMMANDS:
        took = statistics.median(seconds("-m", "tinytf", *command.split()) for _ in range(args.rounds))
        found[command] = {"seconds": took, "imports": imported(command)}
        print(f"tinytf {command:<18}{took:6.2f} s  {' '.join(found[command]['imports'])}", flush=True)
    torch = statistics.median(seconds("-c", "import torch") for _ in range(args.rounds))
    step = statistics.median(first_step() for _ in range(args.rounds))
    print(f"import torch alone       {torch:6.2f} s\nfit, to its first step   {step:6.2f} s", flush=True)
    return {"commands": found, "import_torch": torch, "first_step": step}
