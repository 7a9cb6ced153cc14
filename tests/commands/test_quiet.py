"""Every command from end to end: on stderr are our own lines, and no library's warning, tip or notice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

OURS = re.compile(
    r"run \S+: .*"
    r"|step \d+/\d+  .*"
    r"|--ckpt_path last: no intact checkpoint yet in .*"
    r"|tinytf: note: .*"
    r"|(reading|tokenising|downloading) .*"
    r"|wrote \S+"
    r"|checkpoint: .*"
    r"|[\w-]+: (writing|made|checking|comparing|passed|proving|measuring|not verified).*"
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quiet")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    return folder


FIT = ["fit", "--config", "configs/tiny.yaml", "--trainer.max_steps", "4", "--trainer.val_check_interval", "2"]

COMMANDS = [
    [*FIT, "--config", "configs/loggers/csv.yaml", "--tracking.samples.every_n_validations", "1"],
    ["fit", "--ckpt_path", "last", "--trainer.max_steps", "6"],
    ["validate", "--ckpt_path", "best"],
    ["predict", "--ckpt_path", "best", "--trainer.limit_predict_batches", "1"],
    ["generate", "--ckpt_path", "best", "--max_new_tokens", "4"],
    ["export", "--ckpt_path", "best", "--formats", "pt2,torchscript"],
    ["verify", "checkpoints/tiny/version_0/export"],
    ["inspect", "--ckpt_path", "best"],
    ["runs"],
    ["config-schema"],
    ["completion", "bash"],
]
"""In this order: each needs what those before it left."""


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments[:1]))
def test_only_our_own_lines_reach_the_screen(arguments: list[str], workplace: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tinytf", *arguments], cwd=workplace, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    strange = [line for line in done.stderr.splitlines() if line.strip() and not OURS.fullmatch(line)]
    assert strange == []
