"""Two processes on the CPU: killed, stopped by a signal to the group, resumed, and resumed on one."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.end_to_end.processes import PATIENCE, Fit, events, newest_run
from tests.stress.campaign import end_of, prepare

TWO = {
    "trainer.devices": 2,
    "trainer.precision": "32-true",
    "trainer.strategy": "ddp",
    "trainer.max_steps": 40,
    "trainer.accumulate_grad_batches": 2,
    "trainer.val_check_interval": 8,
    "checkpoint.every_n_steps": 4,
    "data.batch_size": 2,
    "model.dropout": 0.0,
    "trainer.callbacks": "LearningRateMonitor",  # It refuses a Trainer without loggers, in each process.
}
ONE = {**TWO, "trainer.devices": 1, "trainer.strategy": "auto", "data.batch_size": 4}


def fit(folder: Path, settings: dict[str, object]) -> str:
    run = Fit(folder, settings)
    assert run.ended() == 0, run.said()
    return run.said()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    prepare(folder)
    fit(folder, TWO)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that lost the second to SIGKILL, went on, and was stopped by SIGTERM."""
    folder = tmp_path_factory.mktemp("stopped")
    prepare(folder)
    killed = Fit(folder, TWO).until_step(6)
    os.kill(killed.other(), signal.SIGKILL)
    assert killed.ended() == 1, killed.said()
    run = Fit(folder, TWO).until_step(14).signal_group(signal.SIGTERM)
    assert run.ended() == 128 + signal.SIGTERM, run.said()
    return folder


@pytest.fixture(scope="module")
def resumed(stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resumed")
    shutil.copytree(stopped, folder, symlinks=True, dirs_exist_ok=True)
    fit(folder, TWO)
    return folder


def test_a_process_that_is_killed_ends_the_other_with_one_line(stopped: Path) -> None:
    lines = (stopped / "said.log").read_text().splitlines()
    (error,) = (line for line in lines if "error" in line.lower())
    assert error.startswith("tinytf: error: process 1 of 2 on this machine was killed by SIGKILL"), error
    assert "--ckpt_path last" in error
    assert not [line for line in lines if line.startswith(("Traceback", "[rank"))]


def test_a_first_process_that_is_killed_ends_the_other(tmp_path: Path) -> None:
    prepare(tmp_path)
    run = Fit(tmp_path, TWO).until_step(2)
    other = run.other()
    run.signal(signal.SIGKILL)
    assert run.ended() == -signal.SIGKILL
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{other}").exists():
        assert time.monotonic() < deadline, run.said()
        time.sleep(0.05)
    errors = [line for line in run.said().splitlines() if "error" in line.lower()]
    assert len(errors) == 1, run.said()
    assert errors[0].startswith("tinytf: error: another process of the run is gone"), errors


def test_a_group_that_loses_one_then_is_stopped_ends_as_if_neither(unbroken: Path, resumed: Path) -> None:
    reference, end = end_of(unbroken), end_of(resumed)
    # A stop saves where no periodic checkpoint would be, which is one of the newest two for a while.
    assert reference.differs(replace(end, files=reference.files)) == []


def test_a_signal_to_the_group_saves_and_says_so_once(stopped: Path) -> None:
    run = newest_run(stopped)
    assert run is not None
    end = events(stopped, "end")[-1]
    assert (end["reason"], end["detail"]) == ("stopped", "SIGTERM")
    saved = torch.load(run / "last.ckpt", weights_only=True)
    assert saved["global_step"] == end["step"] >= 14
    assert (run / "last.ckpt").readlink().name == f"step-{end['step']:07d}.ckpt"
    said = (stopped / "said.log").read_text()
    assert said.count("SIGTERM: saved step") == 1, said
    assert "Warning" not in said
    assert "sync_dist" not in said


def test_both_processes_write_into_one_folder_and_only_the_first_writes(resumed: Path) -> None:
    runs = list((resumed / "checkpoints" / "killed").iterdir())
    assert [run.name for run in runs] == ["version_0"]
    # One a start of the run: three.
    assert len(list(runs[0].glob("events.out.tfevents.*"))) == len(events(resumed, "start")) == 3
    steps = [row["step"] for row in events(resumed, "metrics") if "train/loss" in row]
    assert steps == list(range(1, 41))
    assert {path.name for path in resumed.iterdir()} == {"checkpoints", "text.txt", "said.log"}


def test_on_one_device_it_sees_the_same_samples_and_says_that_it_is_not_bitwise(
    stopped: Path, unbroken: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    shutil.copytree(stopped, folder, symlinks=True)
    said = fit(folder, ONE)
    assert "resuming on 1 processes a run of 2" in said
    reference, end = end_of(unbroken), end_of(folder)
    assert [row["step"] for row in end.rows] == [row["step"] for row in reference.rows]
    losses, theirs = (
        torch.tensor([row["train/loss"] for row in rows if "train/loss" in row]) for rows in (reference.rows, end.rows)
    )
    # Without dropout the two differ by the order of sums alone; other samples would differ by a tenth.
    torch.testing.assert_close(theirs, losses, atol=2e-3, rtol=0)
