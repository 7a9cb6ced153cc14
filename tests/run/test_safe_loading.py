"""Nothing in a file is ever run, whichever command it is given to, and however; each refusal is one line."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.stress.campaign import arguments, prepare
from tests.stress.killing import attempt
from tinytf.cli.main import main
from tinytf.errors import UserError
from tinytf.weights.checkpoint import load_model, read_checkpoint

COMMANDS = {
    "fit": [],
    "validate": [],
    "test": [],
    "predict": [],
    "generate": ["--prompt", "to be", "--max_new_tokens", "2"],
    "inspect": [],
    "export": ["--formats", "torchscript"],
}
TRAINER = ("fit", "validate", "test", "predict")


class Payload:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("TRACE").absolute(),))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    prepare(folder)
    settings = {"trainer.max_steps": 2, "trainer.val_check_interval": 1}
    code, _ = attempt(arguments(settings), folder)
    assert code == 0, (folder / "attempts.log").read_text()
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    prepare(tmp_path)
    return tmp_path


def good(trained: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(trained / "checkpoints/killed/version_0/last.ckpt", weights_only=True)
    return content


def write(kind: str, path: Path, trained: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "raw":
        path.write_bytes(pickle.dumps(Payload()))
    elif kind == "legacy":
        torch.save(Payload(), path, _use_new_zipfile_serialization=False)
    elif kind == "zip":
        torch.save(Payload(), path)
    else:
        torch.save({**good(trained), "hyper_parameters": {"d_model": Payload()}}, path)


KINDS = ("raw", "legacy", "zip", "inside a checkpoint")


def refused(argv: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command in this process; it must refuse in one line. Returns that line."""
    capfd.readouterr()
    code = main(argv)
    captured = capfd.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    *before, line = captured.err.splitlines()
    notes = ("skipping checkpoint", "not taken over", "note: --ckpt_path")
    assert all(any(note in other for note in notes) for other in before), captured.err
    assert line.startswith("tinytf: error: "), captured.err
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_the_payload_would_run(kind: str, workplace: Path, trained: Path) -> None:
    """Else the other tests prove nothing."""
    write(kind, Path("evil.ckpt"), trained)
    if kind == "raw":
        pickle.loads(Path("evil.ckpt").read_bytes())
    else:
        torch.load("evil.ckpt", weights_only=False)
    assert Path("TRACE").exists()


@pytest.mark.parametrize(
    ("command", "kind"),
    [(command, kind) for command in COMMANDS for kind in KINDS if command in ("fit", "inspect") or kind == KINDS[-1]],
)
def test_a_payload_leaves_no_trace(
    command: str, kind: str, workplace: Path, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(kind, Path("evil.ckpt"), trained)
    line = refused([command, "--ckpt_path", "evil.ckpt", *COMMANDS[command]], capfd)
    assert "evil.ckpt" in line
    assert "weights_only" not in line
    assert not Path("TRACE").exists()
    assert sorted(path.name for path in workplace.iterdir()) == ["evil.ckpt", "text.txt"]


@pytest.mark.parametrize("form", ["best", "last", "config"])
@pytest.mark.parametrize("command", COMMANDS)
def test_however_it_is_named(
    command: str, form: str, workplace: Path, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path("checkpoints/killed/version_0")
    name = "step-0000002-val_loss-1.0000.ckpt"
    write("inside a checkpoint", run / name, trained)
    (run / "config.yaml").touch()
    for link in ("best", "last"):
        (run / f"{link}.ckpt").symlink_to(name)
    given = ["--ckpt_path", form]
    if form == "config":
        if command not in TRAINER:
            pytest.skip("has no --config")
        Path("config.yaml").write_text(yaml.safe_dump({"ckpt_path": str(run / "best.ckpt")}))
        given = ["--config", "config.yaml"]
    line = refused([command, *given, *COMMANDS[command]], capfd)
    assert "plain types" in line
    assert not Path("TRACE").exists()


FOREIGN = {
    "an optimizer": {"model": {"optimizer": {"class_path": "evil_module.Evil"}}},
    "an optimizer by name": {"model": {"optimizer": "evil_module.Evil"}},
    "an optimizer in a file": {"model": {"optimizer": "evil.yaml"}},
    "a schedule": {"model": {"schedule": {"class_path": "evil_module.Evil"}}},
    "a callback": {"trainer": {"callbacks": [{"class_path": "evil_module.Evil"}]}},
    "a callback by name": {"trainer": {"callbacks": "evil_module.Evil"}},
    "a strategy": {"trainer": {"strategy": "evil_module.Evil"}},
    "a logger": {"trainer": {"logger": {"class_path": "evil_module.Evil", "init_args": {}}}},
    "a section in a file": {"trainer": "evil.yaml"},
    "the data": {"data": {"class_path": "evil_module.Evil"}},
}


@pytest.mark.parametrize(
    ("command", "where"), [*(("fit", where) for where in FOREIGN), ("validate", "the data"), ("test", "an optimizer")]
)
def test_a_config_imports_nothing(
    where: str,
    command: str,
    workplace: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The file is clean for torch; what it names must not be imported on its word."""
    Path("evil_module.py").write_text("from pathlib import Path; Path('TRACE').touch(); Evil = object")
    Path("evil.yaml").write_text("class_path: evil_module.Evil")
    monkeypatch.syspath_prepend(str(workplace))
    content = good(trained)
    config = content["tinytf"]["config"]
    for section, values in FOREIGN[where].items():
        config[section] = {**config[section], **values} if isinstance(values, dict) else values
    torch.save(content, "evil.ckpt")
    refused([command, "--ckpt_path", "evil.ckpt"], capfd)
    assert not Path("TRACE").exists()
    assert "evil_module" not in sys.modules


def test_a_short_name_of_the_users_lets_no_other_package_in(
    workplace: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("evil_module.py").write_text("from pathlib import Path; Path('TRACE').touch(); EarlyStopping = object")
    monkeypatch.syspath_prepend(str(workplace))
    content = good(trained)
    config = content["tinytf"]["config"]
    config["trainer"] = {**config["trainer"], "callbacks": [{"class_path": "evil_module.EarlyStopping"}]}
    torch.save(content, "evil.ckpt")
    flags = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"]
    line = refused(["fit", "--ckpt_path", "evil.ckpt", *flags], capfd)
    assert "not of a run in checkpoint.dir" in line
    assert not Path("TRACE").exists()
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("command", ["validate", "generate"])
def test_a_tokenizer_at_which_its_library_panics(
    command: str, workplace: Path, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = good(trained)
    state = {"type": "Precompiled", "precompiled_charsmap": ""}
    content["tinytf"]["tokenizer"] = json.dumps({**json.loads(content["tinytf"]["tokenizer"]), "normalizer": state})
    torch.save(content, "panic.ckpt")
    extra = COMMANDS[command] or ["--data.corpus", "text.txt"]
    assert main([command, "--ckpt_path", "panic.ckpt", *extra]) == 2
    error = capfd.readouterr().err  # With a line of the library's own before ours.
    assert re.search(r"tokenizer (of the|in) checkpoint.*: it is no tokenizer\.json of the tokenizers library", error)
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["fit", "validate", "generate", "inspect"])
def test_other_files_are_refused_by_name(
    command: str, workplace: Path, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newer, foreign, other_shape, torn = (good(trained) for _ in range(4))
    newer["tinytf"]["format"] = 2
    del foreign["tinytf"]
    del torn["tinytf"]["tokenizer"]
    for name, content in {"newer": newer, "foreign": foreign, "torn": torn}.items():
        torch.save(content, f"{name}.ckpt")
    extra = COMMANDS[command]
    assert "its format 2 is newer than the 1" in refused([command, "--ckpt_path", "newer.ckpt", *extra], capfd)
    assert "not written by tinytf" in refused([command, "--ckpt_path", "foreign.ckpt", *extra], capfd)
    assert "lacks tokenizer" in refused([command, "--ckpt_path", "torn.ckpt", *extra], capfd)
    assert "only local files" in refused([command, "--ckpt_path", "http://localhost/x.ckpt", *extra], capfd)
    assert "no such file" in refused([command, "--ckpt_path", "missing.ckpt", *extra], capfd)
    for key in other_shape["state_dict"]:
        other_shape["state_dict"][key] = torch.zeros(3)
    torch.save(other_shape, "shape.ckpt")
    if command != "inspect":  # Which builds no model.
        assert "shape.ckpt" in refused([command, "--ckpt_path", "shape.ckpt", *extra], capfd)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_another_shape_in_a_flag_is_refused_by_name(
    command: str, workplace: Path, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(good(trained), "good.ckpt")
    flags = ["--data.corpus", "text.txt", "--model.d_model", "32"]
    line = refused([command, "--ckpt_path", "good.ckpt", *flags], capfd)
    assert "model.d_model is 32 here but 16 in good.ckpt" in line


@pytest.mark.parametrize("value", [{}, None, 1.5, [torch.zeros(2)]])
def test_weights_that_are_no_tensors_are_refused(value: Any, trained: Path, workplace: Path) -> None:
    content = good(trained)
    content["state_dict"] = dict.fromkeys(content["state_dict"], value)
    torch.save(content, "torn.ckpt")
    with pytest.raises(UserError, match=r"torn\.ckpt: it is incomplete: it lacks its weights or its step"):
        read_checkpoint("torn.ckpt")


def itself() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def shared(levels: int = 12) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value] * 9
    return value


ODD = {
    "a list that holds itself": ({"config": {"a": itself()}}, "its entry tinytf is more than 50 levels deep"),
    "billions by sharing": ({"provenance": {"a": shared()}}, "its entry tinytf is more than 1,000,000 values"),
    "a tuple as key": ({"model": {(1, 2): 3}}, "its entry tinytf has (1, 2) as a key, which is no text"),
    "bytes": ({"data": {"a": b"x"}}, "its entry tinytf has a value of type bytes"),
    "a set": ({"config": {"a": {1}}}, "its entry tinytf has a value of type set"),
}


@pytest.mark.parametrize(("entry", "words"), ODD.values(), ids=ODD)
def test_an_entry_that_no_run_writes_is_refused(
    entry: dict[str, Any], words: str, trained: Path, workplace: Path
) -> None:
    content = good(trained)
    content["tinytf"] |= entry
    torch.save(content, "odd.ckpt")
    with pytest.raises(UserError) as caught:
        read_checkpoint("odd.ckpt")
    assert str(caught.value) == f"checkpoint odd.ckpt: {words}"


CALLBACKS = {
    "a list": ([1], "its entry callbacks is no dict"),
    "a number as key": ({3: {}}, "its entry callbacks has 3 as a key, which is no text"),
    "a list that holds itself": ({"a": itself()}, "its entry callbacks is more than 50 levels deep"),
}


@pytest.mark.parametrize(("callbacks", "words"), CALLBACKS.values(), ids=CALLBACKS)
def test_callbacks_of_another_form_are_refused(callbacks: Any, words: str, trained: Path, workplace: Path) -> None:
    torch.save({**good(trained), "callbacks": callbacks}, "odd.ckpt")
    with pytest.raises(UserError) as caught:
        read_checkpoint("odd.ckpt")
    assert str(caught.value) == f"checkpoint odd.ckpt: {words}"


def test_the_state_of_a_callback_of_another_library_may_have_any_keys(trained: Path, workplace: Path) -> None:
    # As Lightning's BackboneFinetuning.
    torch.save({**good(trained), "callbacks": {"Other": {"groups": {0: [1], (1, 2): {3}}}}}, "other.ckpt")
    assert read_checkpoint("other.ckpt")["callbacks"]["Other"]["groups"][0] == [1]


def test_a_start_token_is_a_number(trained: Path, workplace: Path) -> None:
    content = good(trained)
    content["tinytf"]["data"]["start_token"] = True
    torch.save(content, "odd.ckpt")
    assert load_model("odd.ckpt").start_token is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (torch.Tensor.to_sparse, "sparse_coo, float32"),
        (torch.Tensor.long, "strided, int64"),
        (lambda weight: weight.to(torch.complex64), "strided, complex64"),
        (lambda weight: weight.to("meta"), "on no device"),
    ],
)
def test_weights_are_dense_floating_point_numbers(
    change: Callable[[torch.Tensor], torch.Tensor], says: str, trained: Path, workplace: Path
) -> None:
    content = good(trained)
    key = next(key for key, value in content["state_dict"].items() if value.dim() == 2)
    torch.save(
        {**content, "state_dict": {**content["state_dict"], key: change(content["state_dict"][key])}}, "odd.ckpt"
    )
    with pytest.raises(UserError, match=rf"odd\.ckpt: its weight {key} is {says}"):
        load_model("odd.ckpt")


def test_only_what_is_wrong_with_the_file_is_blamed_on_it(
    trained: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = good(trained)
    key = next(key for key, value in content["state_dict"].items() if value.dim() == 2)
    sparse = {**content["state_dict"], key: content["state_dict"][key].to_sparse()}
    torch.save({**content, "state_dict": sparse}, "sparse.ckpt")
    with pytest.raises(UserError, match=r"sparse\.ckpt"):
        load_model("sparse.ckpt")
    torch.save(content, "good.ckpt")

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("tinytf.weights.checkpoint.tokenizer_from_text", fail)
    with pytest.raises(MemoryError):
        load_model("good.ckpt")


GONE: Any = object()
PROGRESS = ("loops", "fit_loop", "epoch_loop.batch_progress")


@pytest.mark.parametrize(
    ("command", "where", "value", "words"),
    [
        ("fit", ("pytorch-lightning_version",), "~nosuch/x", "Invalid version: '~nosuch/x'"),
        ("validate", ("pytorch-lightning_version",), "-1782.5", "Invalid version: '-1782.5'"),
        ("predict", ("pytorch-lightning_version",), 7, "it cannot be restored"),
        ("test", ("pytorch-lightning_version",), "1.0.0", "it cannot be restored (KeyError"),
        ("fit", ("loops",), None, "its loops is None, which is no dict"),
        ("fit", PROGRESS[:2], {}, "it has no loops.fit_loop.state_dict"),
        (
            "fit",
            (*PROGRESS, "total"),
            [1],
            "its loops.fit_loop.epoch_loop.batch_progress.total is [1], which is no dict",
        ),
        ("fit", (*PROGRESS, "total", "ready"), "8", "total.ready is '8', which is no int"),
        ("fit", (*PROGRESS, "is_last_batch"), 3, "is_last_batch is 3, which is no bool"),
        ("fit", ("TextDataModule",), GONE, "it has no TextDataModule"),
        ("fit", ("TextDataModule",), {"batches": 2}, "it cannot be restored (KeyError: 'samples')"),
        ("fit", ("TextDataModule", "samples"), "8", "it cannot be restored (TypeError"),
        ("fit", ("optimizer_states",), GONE, "it cannot be restored"),
        ("fit", ("optimizer_states",), [{"state": {}, "param_groups": []}], "number of parameter groups"),
        ("fit", ("lr_schedulers",), [{"_step_count": "x"}], "it cannot be restored (KeyError: 'lr_lambdas')"),
        ("fit", ("skipped_steps",), "x", "it cannot be restored (ValueError"),
        ("fit", ("callbacks", "JournalCallback"), {"validated": 1}, "it cannot be restored (KeyError: 'rows')"),
    ],
)
def test_a_state_that_lightning_does_not_load_is_one_line(
    command: str,
    where: tuple[str, ...],
    value: Any,
    words: str,
    workplace: Path,
    trained: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(trained / "checkpoints", "checkpoints")
    content = inner = good(trained)
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    if value is GONE:
        del inner[where[-1]]
    torch.save(content, "checkpoints/killed/version_0/odd.ckpt")
    more = ["--trainer.max_steps=3"] if command == "fit" else []
    assert main([command, "--ckpt_path", "checkpoints/killed/version_0/odd.ckpt", *more]) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert words in error.splitlines()[-1]
    assert "odd.ckpt: " in error.splitlines()[-1]
