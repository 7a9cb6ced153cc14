"""What the tables of wrong input share: a folder of their own, and a look at what the command said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinytf.cli.main import main

TINY = "configs/tiny.yaml"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)


def lines_of(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> list[str]:
    """What wrong input gets, without the prefix; nothing else may end up among it."""
    assert main(arguments) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    lines = said.strip().splitlines()
    errors = [line.removeprefix("tinytf: error: ") for line in lines if line.startswith("tinytf: error: ")]
    assert errors == [line.removeprefix("tinytf: error: ") for line in lines[-len(errors) :]], said
    assert len(set(errors)) == len(errors), said
    return errors


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that one problem gets."""
    lines = lines_of(arguments, capsys)
    assert len(lines) == 1, lines
    return lines[0]


def says(line: str, words: list[str]) -> None:
    for word in words:
        assert word in line, f"{word!r} is not in: {line}"
