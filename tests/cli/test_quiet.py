"""Every command from end to end: on stderr are our own lines, and no library's warning, tip or notice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

OURS = re.compile(
    r"run \S+: .*"
    r"|best checkpoint: .*"
    r"|next:"
    r"|  \S+ (generate|validate|export) --ckpt_path \S+"
    r"|  \S+ (verify \S+|-c 'import torch; .*')( --trust)?"
    r"|evaluating \S+"
    r"|  \S+ --logdir checkpoints"
    r"|step \d+/\d+  .*"
    r"|tinytf: note: .*"
    r"|(reading|tokenizing) .*"
    r"|measuring the reference"
    r"|[\w-]+: (writing|comparing with the model)"
    r"|comparing with .*"
    r"|wrote \S+"
    r"|model\.schedule\.warmup_steps is 5: this run of 4 steps ends .*"
    r"|trainer\.max_steps was \d+ and is \d+: .*"
)
"""What `fit`, `generate`, the data and the export say of themselves."""

FIT = ["fit", "--config", "configs/tiny.yaml", "--trainer.max_steps", "4", "--trainer.val_check_interval", "2"]

COMMANDS = [
    [*FIT, "--tracking.samples.every_n_validations", "1"],
    ["fit", "--ckpt_path", "last", "--trainer.max_steps", "6"],
    ["validate", "--ckpt_path", "best"],
    ["predict", "--ckpt_path", "best", "--trainer.limit_predict_batches", "1"],
    ["generate", "--ckpt_path", "best", "--max_new_tokens", "4"],
    ["export", "--ckpt_path", "best", "--formats", "pt2"],
    ["verify", "checkpoints/tiny/version_0/export"],
    ["inspect", "--ckpt_path", "best"],
    ["runs"],
    ["config-schema"],
    ["completion", "bash"],
]
"""In this order: each needs what those before it left."""

# One interpreter for all, which saves a minute of imports; not pytest's, which keeps warnings from the screen.
RUN_ALL = """
import json, os, sys
from tinytf.cli.main import main
for number, arguments in enumerate(json.loads(sys.argv[1])):
    code = main(arguments)
    sys.stdout.flush()
    os.write(2, f"{number} exits {code}\\n".encode())
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """What each command wrote to stderr, its exit code last."""
    folder = tmp_path_factory.mktemp("quiet")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    command = [sys.executable, "-c", RUN_ALL, json.dumps(COMMANDS)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines: dict[int, list[str]] = {}
    for line in done.stderr.splitlines():
        lines.setdefault(len([1 for block in lines.values() if " exits " in block[-1]]), []).append(line)
    return lines


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda number: f"{number} {COMMANDS[number][0]}")
def test_only_our_own_lines_reach_the_screen(number: int, said: dict[int, list[str]]) -> None:
    *lines, end = said[number]
    assert end == f"{number} exits 0", "\n".join(lines)
    assert [line for line in lines if line.strip() and not OURS.fullmatch(line)] == []


def test_a_warning_of_a_library_would_be_seen() -> None:
    noise = "/lib/python3.11/site-packages/x.py:1: UserWarning: consider increasing the value of `num_workers`"
    assert not OURS.fullmatch(noise)
    assert not OURS.fullmatch("GPU available: False, used: False")
