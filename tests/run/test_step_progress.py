"""Progress: plain lines where stderr is no terminal, a bar where it is, nothing where it is switched off."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from tests.run.toy_run import Dies, ToyData, ToyModule, fit
from tinytf.run.callbacks import progress
from tinytf.run.callbacks.journal import JournalCallback
from tinytf.run.callbacks.progress import StepProgress, clock
from tinytf.run.callbacks.throughput import Throughput


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("step ")]


def test_plain_lines_at_logging_steps_and_validations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = JournalCallback({}, tmp_path)
    fit(tmp_path, [Throughput(), metrics, StepProgress()], steps=9, log_every=4, val_every=4, progress=True)
    shown = capsys.readouterr()
    said = lines(shown.err)
    assert [line.split()[1] for line in said] == ["4/9", "4/9", "8/9", "8/9", "9/9"]
    assert re.fullmatch(r"step 4/9  loss \d\.\d{4}  [\d,]+ tok/s  eta \d:\d\d", said[0])
    assert re.fullmatch(r"step 4/9  validation: loss \d\.\d{4}, \d+\.\d s", said[1])
    assert re.fullmatch(r"step 8/9  loss \d\.\d{4}  val \d\.\d{4}  [\d,]+ tok/s  eta \d:\d\d", said[2])
    assert not lines(shown.out)


def test_a_resumed_run_continues_counting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError):
        fit(tmp_path, [JournalCallback({}, tmp_path)], dies=Dies(7, RuntimeError("killed")))
    capsys.readouterr()
    metrics = JournalCallback({}, tmp_path)
    fit(tmp_path, [metrics, StepProgress()], resume=tmp_path / "5.ckpt", val_every=100, progress=True)
    assert [line.split()[1] for line in lines(capsys.readouterr().err)] == ["6/12", "8/12", "10/12", "12/12"]


class Watch(Callback):
    """A clock that the first step moves on by 100 seconds, and each other one by one."""

    def __init__(self) -> None:
        self.now = 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.now += 100.0 if trainer.global_step == 1 else 1.0


def test_the_first_step_which_compiles_is_not_in_the_eta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch, metrics = Watch(), JournalCallback({}, tmp_path)
    monkeypatch.setattr(progress.time, "monotonic", lambda: watch.now)
    fit(tmp_path, [watch, metrics, StepProgress()], steps=9, log_every=4, val_every=100, progress=True)
    assert lines(capsys.readouterr().err)[0].endswith("eta 0:05")


class Evaluated(ToyModule):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)


class EvaluationData(ToyData):
    def test_dataloader(self) -> Any:
        return self.val_dataloader()

    def predict_dataloader(self) -> Any:
        return self.val_dataloader()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("tinytf.run.callbacks.progress.REFRESH_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "120")
    metrics = JournalCallback({}, tmp_path)
    fit(tmp_path, [Throughput(), metrics, StepProgress()], progress=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "12/12" in plain
    assert "validating 2/3" in plain
    assert re.search(r"loss \d\.\d{4}  val \d\.\d{4}  [\d,]+ tok/s  eta 0:00", plain)
    assert "\nstep " not in plain


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_bar_of_an_evaluation(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("tinytf.run.callbacks.progress.REFRESH_SECONDS", 0.0)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[StepProgress()])
    getattr(trainer, command)(Evaluated(), EvaluationData(), **({} if command == "predict" else {"verbose": False}))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert f"{command.removesuffix('e')}ing" in plain
    assert "3/3" in plain


def test_lightnings_own_switch_stays_in_charge(tmp_path: Path) -> None:
    metrics = JournalCallback({}, tmp_path)
    with pytest.raises(MisconfigurationException, match="enable_progress_bar=False"):
        fit(tmp_path, [metrics, StepProgress()], progress=False)


def test_disabled_it_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = JournalCallback({}, tmp_path)
    quiet = StepProgress()
    quiet.disable()
    fit(tmp_path, [metrics, quiet], progress=True)
    assert not lines(capsys.readouterr().err)


def test_times_as_people_write_them() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 192, 3723)] == ["0:00", "1:00", "3:12", "1:02:03"]
