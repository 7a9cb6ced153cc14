"""A process whose companion is gone ends by itself, or is ended."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tinytf.training.distributed import launcher as launching
from tinytf.training.trainer import Trainer

HANGS = """
import time
from tinytf.training.distributed import launcher as launching
from tinytf.training.trainer import Trainer
launching.POLL_SECONDS, launching.PATIENCE = 0.01, 0.05
launching.Watch(lambda: "process 1 of 2 was killed").start()
time.sleep(600)
"""


def test_one_that_hangs_in_an_exchange_is_ended_with_a_reason() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == (
        "tinytf: error: process 1 of 2 was killed, so this one ends too; resume with --ckpt_path last\n"
    )


def test_patience_is_well_within_a_minute() -> None:
    assert launching.PATIENCE + 2 * launching.POLL_SECONDS < 60


@pytest.mark.parametrize("code", [0, 3, -9])
def test_a_child_is_dead_where_it_failed(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = f"import os; os.kill(os.getpid(), {-code}) if {code} < 0 else os._exit({code})"
    child = subprocess.Popen([sys.executable, "-c", ends])
    monkeypatch.setattr(launching, "CHILDREN", [child])
    child.wait()
    how = {0: None, 3: "ended with exit code 3", -9: "was killed by SIGKILL"}[code]
    assert launching.dead_child() == (how and f"process 1 of 2 on this machine {how}")


def test_only_a_lost_connection_is_a_lost_process() -> None:
    assert launching.lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert launching.lost_process(ValueError("Connection closed by peer")) is None
    gloo = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3024"
    assert "another process of the run is gone" in str(launching.lost_process(RuntimeError(gloo)))


def test_it_stands_in_for_lightnings_launcher() -> None:
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    assert type(trainer.strategy.launcher) is launching.Launcher
