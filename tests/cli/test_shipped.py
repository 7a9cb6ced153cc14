"""Shipped configs by name; files win over them, and a name that is neither is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tinytf.cli.config.presets import folder, names, path_of, with_paths
from tinytf.errors import UserError

REPOSITORY = Path(__file__).parents[2]


def test_every_config_has_its_name() -> None:
    files = {str(path.relative_to(REPOSITORY / "configs")) for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert {f"{name}.yaml" for name in names()} == files


@pytest.mark.parametrize(
    "argv", [["--config", "tiny"], ["-c", "tiny"], ["--config=tiny"], ["--name", "x", "--config", "loggers/wandb"]]
)
def test_a_name_becomes_a_path(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(with_paths(argv)[-1].removeprefix("--config="))
    assert path.is_file()
    assert path.is_absolute()


def test_other_arguments_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--name", "tiny", "--config", "no/such.yaml", "--config", "./tiny", "--data.corpus", "base", "tiny"]
    assert with_paths(argv) == argv


def test_a_file_wins_over_the_shipped_config_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").write_text("name: mine\n")
    (tmp_path / "tiny").mkdir()  # A folder is no config.
    with caplog.at_level(logging.INFO, "tinytf"):
        assert path_of("base") == "base"
        assert path_of("tiny") == str(folder() / "tiny.yaml")
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["--config base"]


@pytest.mark.parametrize(
    ("given", "hint"), [("tny", "did you mean tiny?"), ("loggers/wand", "loggers/wandb"), ("zzz", "there are base")]
)
def test_a_name_that_is_neither_is_refused(given: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        path_of(given)
