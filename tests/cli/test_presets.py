"""Shipped configs by name: files win over them, and a name that is neither is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tinytf.cli.config.files import find_config, preset_dir, preset_names, read_arguments
from tinytf.errors import UserError

REPOSITORY = Path(__file__).parents[2]


def test_every_config_has_its_name() -> None:
    files = {str(path.relative_to(REPOSITORY / "configs")) for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert {f"{name}.yaml" for name in preset_names()} == files


@pytest.mark.parametrize(
    "argv", [["--config", "tiny"], ["-c", "tiny"], ["--config=tiny"], ["--name", "x", "--config", "loggers/wandb"]]
)
def test_a_name_becomes_a_path(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (file,) = read_arguments(argv).files
    assert Path(file.path).is_absolute()
    assert file.content


def test_other_arguments_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--name", "tiny", "--data.corpus", "base", "tiny"]
    assert read_arguments(argv).flags == argv


@pytest.mark.parametrize("path", ["no/such.yaml", "./tiny"])
def test_a_path_is_never_a_preset(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read_arguments(["--config", path])


def test_a_file_wins_over_the_preset_and_that_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").write_text("name: mine\n")
    (tmp_path / "tiny").mkdir()  # A folder is no config.
    with caplog.at_level(logging.INFO, "tinytf"):
        assert find_config("base") == "base"
        assert find_config("tiny") == str(preset_dir() / "tiny.yaml")
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["--config base"]


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("tny", "did you mean tiny?"),
        ("15m", "did you mean recipes/15m?"),
        ("loggers/wand", "loggers/wandb"),
        ("zzz", "the presets are base"),
    ],
)
def test_a_name_that_is_neither_is_refused(given: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        find_config(given)
