"""SIGTERM, SIGINT, SIGHUP and SIGUSR1: the step is finished, the run is saved, the exit code says which."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.processes import Fit, events, newest_run, step_of
from tests.stress.campaign import End, arguments, end_of, prepare
from tests.stress.killing import Instants, attempt
from tinytf.run.callbacks.signals import IMPATIENT_AFTER

pty = pytest.importorskip("pty", reason="Windows has no terminals of this kind, and other signals")

ENDLESS = {"trainer.max_steps": 10_000, "trainer.val_check_interval": 100, "data.num_workers": 1}
SHORT = {"trainer.max_steps": 8, "trainer.accumulate_grad_batches": 2}


def finish(folder: Path, settings: dict[str, Any]) -> End:
    """Run or go on to the end, in a child of this process."""
    code, _ = attempt(arguments(settings), folder)
    assert code == 0, (folder / "attempts.log").read_text()
    return end_of(folder)


def unbroken(settings: dict[str, Any], folder: Path) -> End:
    prepare(folder)
    return finish(folder, settings)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> End:
    return unbroken(SHORT, tmp_path_factory.mktemp("short"))


def same_but_for_the_file_of_the_stop(reference: End, end: End) -> bool:
    return reference.differs(replace(end, files=reference.files)) == []


def assert_stopped_and_saved(folder: Path, number: signal.Signals, said: str) -> None:
    assert "Traceback" not in said
    end = events(folder, "end")[-1]
    assert (end["reason"], end["detail"]) == ("stopped", number.name)
    run = newest_run(folder)
    assert run is not None
    assert (run / "last.ckpt").readlink().name == f"step-{end['step']:07d}.ckpt"
    assert f"{number.name}: saved step {end['step']}, stopping" in said


def test_a_real_process_group_with_loader_processes(tmp_path: Path) -> None:
    prepare(tmp_path)
    run = Fit(tmp_path, ENDLESS).until_step(20).signal_group(signal.SIGTERM)
    assert run.ended() == 128 + signal.SIGTERM, run.said()
    assert_stopped_and_saved(tmp_path, signal.SIGTERM, run.said())


def test_a_second_process_does_not_train_in_the_folder_of_a_running_one(tmp_path: Path) -> None:
    prepare(tmp_path)
    settings = {**ENDLESS, "checkpoint.every_n_steps": 5}
    first = Fit(tmp_path, settings).until_step(20).signal(signal.SIGSTOP)
    rows = (newest_run(tmp_path) / "metrics.jsonl").read_text()
    second = Fit(tmp_path, settings)
    assert second.ended() == 2, second.said()
    assert "another process is training it; wait for its end, or give --name" in second.said()
    assert (newest_run(tmp_path) / "metrics.jsonl").read_text() == rows
    assert newest_run(tmp_path).name == "version_0"
    assert first.signal(signal.SIGKILL).ended() == -signal.SIGKILL
    # The kernel lets go for it, though its loader process may still be there.
    third = Fit(tmp_path, settings)
    while len(events(tmp_path, "start")) < 2:
        assert third.process.poll() is None, third.said()
        time.sleep(0.005)
    third.until_step(step_of(tmp_path) + 5)
    assert third.signal_group(signal.SIGTERM).ended() == 128 + signal.SIGTERM, third.said()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_each_signal_to_a_run_with_loader_processes(number: signal.Signals, short: End, tmp_path: Path) -> None:
    settings = {**SHORT, "data.num_workers": 1}
    prepare(tmp_path)
    code, _ = attempt(arguments(settings), tmp_path, Instants(10, number, only="training_step"))
    said = (tmp_path / "attempts.log").read_text()
    assert code == 128 + number, said
    assert_stopped_and_saved(tmp_path, number, said)
    assert same_but_for_the_file_of_the_stop(short, finish(tmp_path, settings))


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("training_step", 1),  # In the first half of an accumulation.
        ("optimizer_step", 3),
        ("validation_step", 1),
        ("validation_step", 4),
        ("save", 2),
    ],
)
def test_wherever_it_strikes_the_resumed_run_is_the_unbroken_one(
    where: str, count: int, short: End, tmp_path: Path
) -> None:
    prepare(tmp_path)
    code, passed = attempt(arguments(SHORT), tmp_path, Instants(count, signal.SIGTERM, only=where))
    assert code == 128 + signal.SIGTERM, (tmp_path / "attempts.log").read_text()
    if where == "validation_step":
        assert passed <= count + 1, "the validation was not left at once"
    assert events(tmp_path, "end")[-1]["reason"] == "stopped"
    assert same_but_for_the_file_of_the_stop(short, finish(tmp_path, SHORT))


def test_in_the_last_validation_it_is_finished_first(short: End, tmp_path: Path) -> None:
    """A run that is resumed at its last step has nothing left to run, so that validation may not be left."""
    prepare(tmp_path / "counted")
    _, calls = attempt(arguments(SHORT), tmp_path / "counted", Instants(only="validation_step"))
    prepare(tmp_path / "stopped")
    last = Instants(calls - 1, signal.SIGTERM, only="validation_step")
    code, _ = attempt(arguments(SHORT), tmp_path / "stopped", last)
    assert code == 0
    assert short.differs(end_of(tmp_path / "stopped")) == []


def test_a_second_interrupt_does_not_wait_for_the_step(tmp_path: Path) -> None:
    prepare(tmp_path)
    twice = Instants(5, signal.SIGINT, times=2, pause=IMPATIENT_AFTER + 0.1, only="training_step")
    code, passed = attempt(arguments(SHORT), tmp_path, twice)
    assert code == 128 + signal.SIGINT
    assert passed == 5
    folder = newest_run(tmp_path)
    assert folder is not None
    assert not list(folder.glob("*.ckpt"))
    assert events(tmp_path, "end")[-1]["reason"] == "stopped"


def test_one_interrupt_that_arrives_twice_saves(short: End, tmp_path: Path) -> None:
    """As under make, docker -t and uv: the terminal and the parent both send it."""
    prepare(tmp_path)
    code, _ = attempt(arguments(SHORT), tmp_path, Instants(5, signal.SIGINT, times=2, only="training_step"))
    said = (tmp_path / "attempts.log").read_text()
    assert code == 128 + signal.SIGINT, said
    assert_stopped_and_saved(tmp_path, signal.SIGINT, said)
    assert same_but_for_the_file_of_the_stop(short, finish(tmp_path, SHORT))


def test_a_terminal_that_is_closed_saves_first(tmp_path: Path) -> None:
    """The system sends SIGHUP, and every further line on stderr is an error."""
    prepare(tmp_path)
    settings = {**ENDLESS, "trainer.enable_progress_bar": "true"}
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-m", "tinytf", *arguments(settings)])
    while step_of(tmp_path) < 20:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), os.read(terminal, 4000)
        if select.select([terminal], [], [], 0.01)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    os.waitpid(child, 0)
    end = events(tmp_path, "end")[-1]
    assert (end["reason"], end["detail"]) == ("stopped", "SIGHUP")
    assert (newest_run(tmp_path) / "last.ckpt").readlink().name == f"step-{end['step']:07d}.ckpt"
