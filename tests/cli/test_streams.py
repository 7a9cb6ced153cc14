"""stdout and stderr as shells, pipes and locales leave them; texts of files on a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_runs import end, start, val, write
from tests.cli.tiny_checkpoint import PROVENANCE, SETTINGS, write_checkpoint
from tests.cli.wrong_input import TINY, refused
from tests.cli.wrong_input import in_an_empty_folder as in_an_empty_folder
from tinytf.cli.main import main

ODD = "caf\u00e9 \u6771\u4eac"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt.exe\r\nforged\x7f\u2028"


def shell(command: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A command line of a POSIX shell; ``tinytf`` in it is this checkout's."""
    command = command.replace("tinytf ", f"{sys.executable} -m tinytf ", 1)
    here = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(["sh", "-c", command], env={**os.environ, **here, **env}, capture_output=True, check=False)


@pytest.fixture
def runs() -> None:
    for version in range(200):
        write(Path("checkpoints") / ODD / f"version_{version}", start(), val(5, 2.5), end(20, "finished"))


LOCALES = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C"},
]


@pytest.mark.parametrize("env", LOCALES, ids=lambda env: next(iter(env.values())))
def test_results_are_utf_8_whatever_the_locale(env: dict[str, str], runs: None) -> None:
    done = shell("tinytf runs --json", **env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout.decode("utf-8"))[0]["name"] == ODD
    assert ODD in shell("tinytf runs", **env).stdout.decode("utf-8")


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("tinytf runs >&-", 0, b""),
        ("tinytf runs --root gone 2>&-", 2, b""),
        ("tinytf --version >&- 2>&-", 0, b""),
        ("tinytf runs >/dev/full", 1, b"tinytf: error: stdout: No space left on device\n"),
        ("tinytf --version >/dev/full", 1, b"tinytf: error: stdout: No space left on device\n"),
        ("tinytf runs --root gone 2>/dev/full", 2, b""),
        ("{ tinytf runs; echo $? >&2; } | true", 0, b"141\n"),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_stream_that_is_closed_or_full(command: str, code: int, says: bytes, runs: None) -> None:
    done = shell(command)
    assert (done.returncode, done.stderr) == (code, says)


def test_a_run_that_nobody_looks_at_any_more_is_trained_and_saved() -> None:
    done = shell(f"tinytf fit --config {TINY} --trainer.max_steps=8 --trainer.log_every_n_steps=1 2>&1 | head -1")
    assert done.returncode == 0
    last = json.loads(Path("checkpoints/tiny/version_0/metrics.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["step"], last["reason"]) == ("end", 8, "finished")
    assert Path("checkpoints/tiny/version_0/last.ckpt").exists()


# -- control characters --------------------------------------------------------------------------------------------


def acts(text: str) -> list[str]:
    """The characters of a text that a terminal acts on, but for the ends of our own lines."""
    return [mark for mark in text if unicodedata.category(mark) in ("Cc", "Cf", "Zl", "Zp") and mark != "\n"]


def test_inspect_shows_no_control_characters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config: dict[str, Any] = {**SETTINGS, "name": HOSTILE, f"key{HOSTILE}": {HOSTILE: [HOSTILE]}}
    provenance = {**PROVENANCE, "command": HOSTILE[:20], "packages": {HOSTILE: HOSTILE}}
    one = write_checkpoint(tmp_path / "one.ckpt", config=config, provenance=provenance)
    two = write_checkpoint(tmp_path / "two.ckpt")
    for flags in ([], ["--json"], ["--diff", str(two)], ["--diff", str(two), "--json"]):
        assert main(["inspect", "--ckpt_path", str(one), *flags]) == 0
        said = capsys.readouterr()
        assert "owned" in said.out
        assert not acts(said.out + said.err), flags
        assert "\nforged" not in said.out
    main(["inspect", "--ckpt_path", str(one), "--json"])
    assert json.loads(capsys.readouterr().out)["config"]["name"] == HOSTILE


def test_runs_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("checkpoints") / HOSTILE.replace("/", "") / "version_0", start(), val(5, 2.5), end(20, "finished"))
    for flags in ([], ["--json"]):
        assert main(["runs", *flags]) == 0
        said = capsys.readouterr().out
        assert "owned" in said
        assert not acts(said), flags


def test_a_warning_of_a_command_that_computes_nothing_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("checkpoints") / HOSTILE.replace("/", "") / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("no record\n" * 2)
    assert main(["runs"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("checkpoints/\\x1b]0;owned")
    assert not acts(line)


@pytest.mark.parametrize(
    "flags",
    [
        ["fit", "--config", HOSTILE],
        ["fit", "--config", TINY, f"--{HOSTILE}", "1"],
        ["fit", "--config", TINY, "--data.corpus", HOSTILE],
        ["fit", "--config", TINY, "--model.d_model", HOSTILE],
        ["fit", "--config", TINY, "--model.optimizer", HOSTILE],
        ["fit", "--ckpt_path", HOSTILE],
        ["fit", "--ckpt_path", "theirs.ckpt"],
        ["generate", "--ckpt_path", HOSTILE],
        ["runs", "--root", HOSTILE],
        [HOSTILE],
    ],
)
def test_no_message_passes_control_characters_on(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sections = {name: {} for name in ("trainer", "model", "checkpoint", "tracking")}
    write_checkpoint("theirs.ckpt", config={**sections, "data": {"corpus": HOSTILE}, "name": HOSTILE})
    assert not acts(refused(flags, capsys))
