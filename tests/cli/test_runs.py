"""`tinytf runs`: it tells running, finished, stopped and crashed apart, from journals alone and at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinytf.cli import runs
from tinytf.errors import UserError
from tinytf.run.journal import encode
from tinytf.utils.machine import is_alive, this_process


def write(folder: Path, *records: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    with (folder / "metrics.jsonl").open("wb") as file:
        for second, record in enumerate(records):
            file.write(encode({"time": f"2026-01-01T00:00:{second:02}.000000Z", **record}))


def start(step: int = 0, process: dict[str, Any] | None = None) -> dict[str, Any]:
    git = {"commit": "0123456789abcdef", "dirty": True}
    return {
        "event": "start", "step": step, "max_steps": 20, "process": process or this_process(),
        "provenance": {"git": git},
    }  # fmt: skip


def val(step: int, loss: float) -> dict[str, Any]:
    return {"event": "metrics", "step": step, "val/loss": loss}


def end(step: int, reason: str) -> dict[str, Any]:
    return {"event": "end", "step": step, "reason": reason}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    dead = this_process() | {"started": 1}
    write(tmp_path / "a" / "version_0", start(), val(5, 2.5), val(10, 2.0), val(20, 2.25), end(20, "finished"))
    write(tmp_path / "a" / "version_1", start(), val(5, 1.5))
    write(tmp_path / "b" / "version_0", start(process=dead), val(5, 3.0), val(10, float("nan")))
    write(tmp_path / "b" / "version_1", start(), end(7, "stopped"))
    write(tmp_path / "b" / "version_2", start(), end(7, "error"), start(5), end(20, "finished"))
    (tmp_path / "b" / "version_3").mkdir()
    (tmp_path / "mlruns" / "version_x").mkdir(parents=True)
    return tmp_path


def listed(root: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    assert runs.run(["--root", str(root), "--json", *flags]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_states(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = {(row["name"], row["version"]): row["state"] for row in listed(root, capsys)}
    assert states == {
        ("a", 0): "finished",
        ("a", 1): "running",
        ("b", 0): "crashed",
        ("b", 1): "stopped",
        ("b", 2): "finished",
        ("b", 3): "empty",
    }


def test_a_run_that_stopped_early_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    early = {"stopped_early": True, "detail": "EarlyStopping: val/loss did not improve"}
    write(tmp_path / "a" / "version_0", start(), val(8, 2.0), {**end(8, "finished"), **early})
    write(tmp_path / "a" / "version_1", start(), {**end(8, "finished"), **early}, start(8), end(20, "finished"))
    assert [row["state"] for row in listed(tmp_path, capsys)] == ["stopped early", "finished"]
    assert runs.run(["--root", str(tmp_path)]) == 0
    assert "stopped early  8/20" in capsys.readouterr().out


def test_a_runs_numbers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {(row["name"], row["version"]): row for row in listed(root, capsys)}
    first = rows["a", 0]
    assert (first["best_val_loss"], first["best_step"], first["step"], first["max_steps"]) == (2.0, 10, 20, 20)
    assert (first["seconds"], first["commit"], first["dirty"]) == (4.0, "0123456789abcdef", True)
    assert rows["b", 0]["best_val_loss"] == 3.0
    assert rows["b", 2]["seconds"] == 2.0  # Two attempts of a second each; the second between them is not a run's.


def test_a_process_on_another_machine_is_judged_by_its_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = this_process() | {"machine": "another"}
    write(tmp_path / "a" / "version_0", start(process=elsewhere), val(5, 2.5))
    monkeypatch.setattr(runs, "utc_now", lambda: "2026-01-01T00:05:00.000000Z")
    assert listed(tmp_path, capsys)[0]["state"] == "running"
    monkeypatch.setattr(runs, "utc_now", lambda: "2026-01-01T00:11:00.000000Z")
    assert listed(tmp_path, capsys)[0]["state"] == "crashed"


def test_a_process_that_was_killed_is_seen_to_be_dead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "from tinytf.utils.machine import this_process; import json; print(json.dumps(this_process()), flush=True)"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}; input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    process = json.loads(child.stdout.readline())
    write(tmp_path / "a" / "version_0", start(process=process))
    assert listed(tmp_path, capsys)[0]["state"] == "running"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "name", "nt")  # os.kill would send it Ctrl-C.
        patch.setattr(os, "kill", None)
        assert is_alive(process) is None
    child.kill()
    child.wait()
    assert listed(tmp_path, capsys)[0]["state"] == "crashed"


def test_sorted_with_missing_values_last(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(root, capsys, "--sort", "best_val_loss")
    assert [row["best_val_loss"] for row in rows] == [1.5, 2.0, 3.0, None, None, None]


def test_the_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.run(["--root", str(root), "--sort", "name"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["name", "version", "state", "step"]
    assert lines[1].split() == [
        "a", "0", "finished", "20/20", "2.0000", "10", "0:00:04", "2026-01-01", "00:00", "012345678+",
    ]  # fmt: skip
    assert len(lines) == 7


def test_wrong_input_is_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        runs.run(["--root", str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="--sort"):
        runs.run(["--sort", "beauty"])


@pytest.mark.parametrize(
    "torn", [b"oops", b"\0" * 500, b'{"event": "start"}', b'{"event": "start", "time": "soon", "step": 0}', b"[" * 9999]
)
@pytest.mark.parametrize("first", [False, True])
def test_one_torn_journal_hides_no_run(
    root: Path, torn: bytes, first: bool, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    runs.run(["--root", str(root), "--json"])
    before = json.loads(capsys.readouterr().out)
    journal = root / "a" / "version_0" / "metrics.jsonl"
    lines = journal.read_bytes()
    journal.write_bytes(torn + b"\n" + lines if first else lines + torn + b"\n" + encode(val(30, 1.0)))
    runs.run(["--root", str(root), "--json"])
    after = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in after] == [row["path"] for row in before]
    assert f"{journal}: 1 lines are no records" in caplog.text


def test_an_empty_folder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.run(["--root", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == []
    assert "no runs" in shown.err


def test_it_starts_without_torch() -> None:
    heavy = ("torch", "lightning", "numpy")
    code = f"import sys; import tinytf.cli.runs; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "[]"


FOREIGN = {
    "a time without its zone": [start(), {**val(5, 2.5), "time": "2026-01-01T00:00:09"}],
    "a process without its start": [start(process={k: v for k, v in this_process().items() if k != "started"})],
    "a step of no number": [start(), {**val(5, 2.5), "step": None}],
    "max_steps of null": [{**start(), "max_steps": None}],
    "a loss of a text": [start(), {**val(5, 2.5), "val/loss": "x"}],
    "a loss of a list": [start(), {**val(5, 2.5), "val/loss": [1]}],
    "a pid of 100 bits": [start(process=this_process() | {"pid": 10**30})],
    "a pid of text": [start(process=this_process() | {"pid": "1"})],
    "a reason of its own": [start(), end(5, "bored")],
    "no process": [{key: value for key, value in start().items() if key != "process"}],
}


@pytest.mark.parametrize("records", FOREIGN.values(), ids=FOREIGN)
def test_one_foreign_journal_hides_no_run(
    records: list[dict[str, Any]], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(root / "c" / "version_0", *records)
    assert [row["name"] for row in listed(root, capsys, "--sort", "name")] == ["a"] * 2 + ["b"] * 4 + ["c"]
    assert runs.run(["--root", str(root)]) == 0


def test_a_journal_that_cannot_be_read_is_a_row(
    root: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bad = root / "c" / "version_0"
    write(bad, *FOREIGN["a time without its zone"])
    assert {row["name"]: row["state"] for row in listed(root, capsys)}["c"] == "unreadable"
    assert f"run {bad}: its journal cannot be read (TypeError" in caplog.text


def test_only_decimal_versions_are_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "a" / "version_²").mkdir()
    assert len(listed(root, capsys)) == 6
