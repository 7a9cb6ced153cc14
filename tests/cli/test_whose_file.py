"""A checkpoint from anywhere but the user's own runs is data: what it names is never opened, imported or addressed."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.wrong_input import TINY, refused, says
from tests.cli.wrong_input import in_an_empty_folder as in_an_empty_folder
from tinytf.cli.config.files import read_arguments
from tinytf.cli.config.own_modules import find_own_modules
from tinytf.cli.config.parser import Description
from tinytf.cli.config.resume import OURS_TO_DECIDE, WORDS, strangers_defaults
from tinytf.cli.main import main
from tinytf.errors import UserError
from tinytf.run.directory import is_own
from tinytf.utils.text import flatten

COMMANDS = ["fit", "validate", "test", "predict"]
EVIL = "evil_module.Evil"
NAMES = [EVIL, "LICENSE", "./evil.yaml", "https://evil.example/x", "{class_path: evil_module.Evil}", "a/b", "x" * 9]
HOSTILE: list[Any] = [
    *NAMES, {"class_path": EVIL}, [{"class_path": EVIL}], {"class_path": "LICENSE", "init_args": {"x": EVIL}}, [EVIL],
    {"project": "theirs", "uri": "https://evil.example"},
]  # fmt: skip


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    """The defaults of `tinytf fit`."""
    description = Description("fit", [])
    return description.plain(description.parser.get_defaults())


def keys_of(config: dict[str, Any]) -> list[str]:
    sections = {name for name, value in config.items() if isinstance(value, dict)}
    return sorted({*sections, *(key for key, _ in flatten(config)), "model.optimizer", "model.schedule"})


def put(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for name in parents:
        config = config[name]
    config[leaf] = value


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in texts(inner)]
    return [value] if isinstance(value, str) else []


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(data=st.data(), value=st.sampled_from(HOSTILE), command=st.sampled_from(COMMANDS))
def test_no_name_in_any_key_is_taken_over(usual: dict[str, Any], data: st.DataObject, value: Any, command: str) -> None:
    key = data.draw(st.sampled_from(keys_of(usual)))
    config = copy.deepcopy(usual)
    put(config, key, value)
    try:
        taken = strangers_defaults(command, config, Path("theirs.ckpt"), usual, ())
    except UserError:
        return
    allowed = {key for key, words in WORDS.items() if words is None}
    left = {name: text for name, leaf in flatten(taken) for text in texts(leaf) if name not in allowed}
    assert not set(left.values()) & set(texts(value)), f"{key} was taken over"


@given(st.sampled_from(OURS_TO_DECIDE), st.sampled_from([3_000, True, "auto", [0, 1]]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_how_many_processes_run_here_is_not_a_strangers_to_say(usual: dict[str, Any], key: str, value: Any) -> None:
    config = copy.deepcopy(usual)
    put(config, key, value)
    taken = dict(flatten(strangers_defaults("fit", config, Path("theirs.ckpt"), usual, ())))
    assert key not in taken or taken[key] == dict(flatten(usual))[key]


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Any]:
    """The content of a checkpoint of two steps."""
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    flags = ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--data.corpus=text.txt"]
    assert main(["fit", "--config", TINY, *flags]) == 0
    content: dict[str, Any] = torch.load("checkpoints/tiny/version_0/last.ckpt", weights_only=True)
    return content


def test_a_strangers_file(trained: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path,
                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    (tmp_path / "evil_module.py").write_text("from pathlib import Path; Path('TRACE').touch(); Evil = object")
    (tmp_path / "LICENSE").write_text("class_path: evil_module.Evil")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = trained["tinytf"]["config"]
    config["trainer"].update(callbacks="LICENSE", devices=3_000)
    config["data"].update(cache_dir="THEIRS", num_workers=3_000, corpus="https://evil.example/{0..99999999}")
    config["checkpoint"]["dir"] = "THEIRS"
    config["tracking"]["mlflow"] = {"experiment": "x", "uri": "https://evil.example"}
    Path("shared").mkdir()
    torch.save(trained, "shared/theirs.ckpt")

    # One message names all that the command needs.
    line = refused(["fit", "--ckpt_path", "shared/theirs.ckpt"], capsys)
    says(line, ["shared/theirs.ckpt", "not of a run in checkpoint.dir", "data.corpus", "trainer.callbacks (LICENSE)"])
    assert "mlflow" not in line
    for command in COMMANDS[1:]:
        says(refused([command, "--ckpt_path", "shared/theirs.ckpt"], capsys), ["data.corpus (https://evil.example"])

    # Given again, it does what it should, with the numbers of the file, here.
    again = ["--ckpt_path", "shared/theirs.ckpt", "--data.corpus", "text.txt"]
    assert main(["validate", *again]) == 0
    assert main(["fit", *again, "--trainer.callbacks=null", "--trainer.max_steps=3", "--name=mine"]) == 0
    assert "tracking.mlflow" in capsys.readouterr().err, "what is left out is said"
    assert sorted(path.name for path in Path("checkpoints/mine").iterdir()) == ["version_0"]
    assert not Path("THEIRS").exists()
    assert not Path("TRACE").exists()
    assert "evil_module" not in sys.modules
    assert sorted(path.name for path in Path("shared").iterdir()) == ["theirs.ckpt"]


def test_a_folder_is_importable_for_what_may_name_a_class_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").touch()
    (tmp_path / "corpus.yaml").write_text("data: {corpus: theirs.txt}\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = [*sys.path]
    find_own_modules(read_arguments(["--ckpt_path=theirs.ckpt", "--name", "theirs.best", "--config=corpus.yaml"]))
    assert sys.path == before
    find_own_modules(read_arguments(["--trainer.callbacks", "theirs.Callback"]))
    assert sys.path == [*before, str(tmp_path)]


def test_a_run_that_was_copied_here_whole_is_a_strangers_too(
    trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = Path("downloads/tiny/version_0")
    theirs.parent.mkdir(parents=True)
    Path("checkpoints/tiny/version_0").rename(theirs)
    before = {path: path.read_bytes() for path in theirs.iterdir() if path.is_file()}
    says(refused(["fit", "--ckpt_path", str(theirs / "last.ckpt")], capsys), ["data.corpus (text.txt)"])
    again = ["--ckpt_path", str(theirs / "last.ckpt"), "--data.corpus", "text.txt", "--trainer.max_steps=3"]
    assert main(["fit", *again]) == 0
    assert {path: path.read_bytes() for path in theirs.iterdir() if path.is_file()} == before
    assert Path("checkpoints/default/version_0/last.ckpt").exists()
    # In the folder that the user calls that of the runs, it is the user's.
    assert main(["fit", *again[:2], "--checkpoint.dir=downloads", "--trainer.max_steps=3"]) == 0
    assert Path("downloads/tiny/version_0/last.ckpt").resolve().name.startswith("step-0000003")


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("checkpoints/a/version_0/last.ckpt", True),
        ("checkpoints/last.ckpt", False),
        ("checkpoints/a/last.ckpt", False),
        ("checkpoints/a/b/version_0/last.ckpt", False),
        ("elsewhere/a/version_0/last.ckpt", False),
        ("checkpoints/a/version_0/../../../elsewhere/a/version_0/last.ckpt", False),
        ("checkpoints/linked/version_0/last.ckpt", False),
    ],
)
def test_which_files_are_the_users_own(path: str, own: bool) -> None:
    for run_dir in ("checkpoints/a/version_0", "elsewhere/a/version_0"):
        Path(run_dir).mkdir(parents=True)
    Path("checkpoints/linked").symlink_to("../elsewhere/a")
    assert is_own(Path(path), Path("checkpoints")) == own
