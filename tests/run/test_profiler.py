"""Profiling: a trace of just those steps, and the costliest operators on stderr."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.run.toy_run import Dies, fit, records
from tinytf.run.callbacks.journal import JournalCallback
from tinytf.run.callbacks.profiler import COSTLIEST, Profiler


def backward_passes(path: Path) -> int:
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    # Once a micro-batch, whatever the model.
    return sum(event.get("name") == "aten::cross_entropy_loss" for event in events)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trace_holds_the_steps_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], accumulate: int
) -> None:
    fit(tmp_path, [Profiler(3, 2)], steps=6, val_every=100, accumulate=accumulate)
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "steps_0000003-0000004.json.gz"
    assert backward_passes(path) == 2 * accumulate
    shown = capsys.readouterr()
    assert str(path) in shown.err
    assert (
        len([line for line in shown.err.splitlines() if line.lstrip().startswith(("aten::", "autograd::", "Optim"))])
        > 3
    )
    assert shown.err.count("\n") < COSTLIEST + 20
    assert "aten::" not in shown.out


def test_from_the_first_step(tmp_path: Path) -> None:
    fit(tmp_path, [Profiler(1, 1)], steps=3, val_every=100)
    (path,) = (tmp_path / "profile").iterdir()
    assert backward_passes(path) == 1


def test_a_resumed_run_counts_from_where_it_starts(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fit(tmp_path, [], dies=Dies(7, RuntimeError("killed")))
    fit(tmp_path, [Profiler(2, 1)], resume=tmp_path / "5.ckpt")
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["steps_0000007-0000007.json.gz"]


@pytest.mark.parametrize(("settings", "files"), [((10, 3), 0), ((5, 9), 1)])
def test_a_run_that_ends_before_says_so(tmp_path: Path, settings: tuple[int, int], files: int) -> None:
    fit(tmp_path, [Profiler(*settings), JournalCallback({}, tmp_path)], steps=6)
    messages = [record["message"] for record in records(tmp_path, "warning")]
    assert any("tracking.profile: the run ended at step 6" in message for message in messages)
    folder = tmp_path / "profile"
    assert len(list(folder.iterdir()) if folder.exists() else []) == files
