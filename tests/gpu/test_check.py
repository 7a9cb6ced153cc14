"""The check of a GPU runs on a CPU too, in small: it can then be believed the first time that there is one."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import check, correctness, speed
from tests.gpu.place import Place
from tests.stress.killing import attempt

ALONE = "learning, the recipe"
"""Run as the others are on a GPU, in a process of its own; the others share this one, where a start costs nothing."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question.\n" * 400)
    return path


def test_each_check_is_a_process_with_a_line_and_a_result(
    text: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--device=cpu", "--small", "--jobs=1", f"--corpus={text}", f"--json={text.with_name('results.json')}"]
    monkeypatch.setattr(sys, "argv", ["check", ALONE, *flags])
    assert check.main() == 0
    (result,) = json.loads(text.with_name("results.json").read_text()).items()
    assert (result[0], result[1]["ok"]) == (ALONE, True)
    assert result[1]["validations"]
    assert capfd.readouterr().out.splitlines()[-1] == "1 of 1 checks passed"


def tinytf(self: Place, *arguments: str, code: int = 0) -> tuple[str, float]:
    """`Place.tinytf` in a fork of this process."""
    began, log = time.perf_counter(), self.folder / "attempts.log"
    log.unlink(missing_ok=True)
    ended, _ = attempt(list(arguments), self.folder)
    said = log.read_text()
    assert ended == code, said
    return said, time.perf_counter() - began


@pytest.mark.parametrize("name", sorted({*correctness.DRY, *speed.DRY} - {ALONE}))
def test_a_dry_run(name: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "tinytf", tinytf)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = check.CHECKS[name](Place(tmp_path, "cpu", str(text), small=True))
    wanted = {
        "commands": lambda: "pt2" in found["export"],
        "resume, bf16": lambda: (found["kills"], found["differs in"]) == (1, []),
        "learning, tinytf fit": lambda: found["validations"],
        "throughput, tinytf fit": lambda: found["tokens_per_second"] > 0,
    }
    assert wanted[name]()
