"""A run's folder as --ckpt_path: its best checkpoint, or for fit its last; the command says which file that is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.tiny_checkpoint import write_checkpoint
from tests.cli.wrong_input import in_an_empty_folder as in_an_empty_folder
from tests.cli.wrong_input import refused
from tests.run.test_directory import run_started
from tinytf.cli.config.files import read_arguments
from tinytf.cli.config.parser import find_checkpoint
from tinytf.cli.main import main

BEST, LAST = "step-0000005-val_loss-1.5000.ckpt", "step-0000009.ckpt"


@pytest.fixture
def runs(in_an_empty_folder: None) -> Path:
    """checkpoints/base, of which each of two runs has a best and a last checkpoint."""
    for number, step in ((0, 3), (1, 9)):
        run_dir = run_started(Path("checkpoints"), "base", 9 + number)
        write_checkpoint(run_dir / f"step-{step:07d}.ckpt", step=step)
        write_checkpoint(run_dir / (BEST if number else "step-0000001-val_loss-1.0000.ckpt"))
    return Path("checkpoints/base")


@pytest.mark.parametrize("given", ["checkpoints/base", "checkpoints/base/version_1", "./checkpoints/base/version_1/"])
def test_it_is_its_best_checkpoint_or_for_fit_its_last(
    given: str, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for command in ("validate", "test", "predict", "fit"):
        found = find_checkpoint(command, read_arguments(["--ckpt_path", given]), required=True)
        assert found == runs / "version_1" / (LAST if command == "fit" else BEST)
        kind = "last" if command == "fit" else "best"
        assert caplog.messages[-1] == f"--ckpt_path {Path(given)}: its {kind} checkpoint is {found}"


def test_every_other_command_takes_the_best_and_says_so(
    runs: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["inspect", "--ckpt_path", str(runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"]["file"] == str((runs / "version_1" / BEST).resolve())
    assert main(["generate", "--ckpt_path", str(runs / "version_0"), "--max_new_tokens", "1"]) == 0
    first = runs / "version_0" / "step-0000001-val_loss-1.0000.ckpt"
    assert caplog.messages == [
        f"--ckpt_path {runs}: its best checkpoint is {runs / 'version_1' / BEST}",
        f"--ckpt_path {first.parent}: its best checkpoint is {first}",
    ]


@pytest.mark.parametrize("command", ["fit", "validate", "inspect", "generate", "export"])
def test_a_folder_without_one_is_refused(command: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, empty = "last" if command == "fit" else "best", run_started(Path("checkpoints"), "base", 12)
    for given, at in ((runs, str(empty)), (Path("checkpoints"), "it")):
        line = refused([command, "--ckpt_path", str(given)], capsys)
        assert line.startswith(f"--ckpt_path {given}: it is a folder, and {at} has no intact {kind} checkpoint; give ")


def test_best_says_which_file_it_is_and_a_run_name_alone_how_it_is_given(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--ckpt_path", "best", "--max_new_tokens", "1"]) == 0
    found = runs / "version_1" / BEST
    assert capsys.readouterr().err.splitlines() == [f"tinytf: note: --ckpt_path best is {found}"]
    for command in ("generate", "validate"):
        line = refused([command, "--ckpt_path", "base"], capsys)
        assert line.endswith("there is no such file; for the run of that name: --ckpt_path best --name base")
