"""Wrong texts, checkpoints and command lines get one line: what is wrong, where, what to do; never a traceback."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.cli.tiny_checkpoint import TEXT, write_checkpoint
from tests.cli.wrong_input import TINY, refused, says
from tests.cli.wrong_input import in_an_empty_folder as in_an_empty_folder
from tinytf.errors import UserError
from tinytf.run import recovery
from tinytf.run import run as running
from tinytf.run.recovery import release_run_locks

# -- data ----------------------------------------------------------------------------------------------------------

URL = "http://127.0.0.1:9/a.txt"

DATA = [
    (["--data.corpus", "nowhere.txt"], ["nowhere.txt", "no such file", "python-docs"]),
    (["--data.corpus", "nowhere/*.txt"], ["nowhere/*.txt", "matches no file"]),
    (["--data.corpus", "empty"], ["empty", "no *.txt"]),
    (["--data.corpus", "empty.txt"], ["empty.txt", "no text at all"]),
    (["--data.corpus", "latin.txt"], ["latin.txt:1", "byte 3", "not UTF-8", "iconv"]),
    (["--data.corpus", "short.txt"], ["train split has 18 tokens", "data.seq_len 64"]),
    (["--data.corpus", URL], [URL, "#sha256="]),
    (["--data.corpus", f"{URL}#sha256=12"], ["64 hexadecimal digits"]),
    (["--data.corpus", f"{URL}#sha256={'0' * 64}"], [URL, "could not be fetched"]),
    (["--data.corpus", f"FILE#sha256={'0' * 64}"], ["its sha256 is", "nothing was kept"]),
    (["--data.batch_size", "100000"], ["data.batch_size 100000", "larger than an epoch", "lower data.batch_size"]),
    (["--data.tokenizer", "nowhere.json"], ["tokenizer nowhere.json", "char, bpe"]),
    (["--data.tokenizer", TINY], ["tokenizer configs/tiny.yaml", "no tokenizer.json"]),
    (["--data.tokenizer", "bpe", "--data.vocab_size", "10"], ["data.vocab_size 10", "at least 258"]),
    (["--data.val_fraction", "1"], ["data.val_fraction is 1", "must be in (0, 1)"]),
    (["--data.val_fraction", "0.5", "--data.test_fraction", "0.5"], ["nothing to train on"]),
    (["--data.test_fraction", "0.1", "--data.test_corpus", "short.txt"], ["test_fraction", "test_corpus", "not both"]),
    (["--data.cache_dir", "short.txt"], ["the cache cannot be written at short.txt", "--data.cache_dir"]),
]


@pytest.mark.parametrize(("flags", "words"), DATA, ids=[" ".join(flags)[:70] for flags, _ in DATA])
def test_text_that_cannot_be_used(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("To be, or not to be.")
    (tmp_path / "latin.txt").write_bytes("caf\xe9 noir".encode("latin-1"))
    flags = [flag.replace("FILE", (tmp_path / "short.txt").as_uri()) for flag in flags]
    says(refused(["fit", "--config", TINY, *flags], capsys), words)
    assert not (tmp_path / "checkpoints").exists(), "wrong input left a run folder"


def test_a_full_disk_under_the_cache(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tinytf.data.config.os.fsync", full)
    flags = ["--data.cache_dir", "new", "--trainer.max_steps", "1"]
    says(refused(["fit", "--config", TINY, *flags], capsys), ["No space left on device", "make room"])


def test_a_folder_of_runs_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    flags = ["--checkpoint.dir", "taken", "--trainer.max_steps", "1"]
    says(refused(["fit", "--config", TINY, *flags], capsys), ["checkpoint.dir", "taken", "another folder"])
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "words"), [("taken", ["checkpoints/taken", "File exists"]), ("x" * 300, ["File name too long"])]
)
def test_a_run_folder_that_cannot_be_made(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "taken").write_text("mine")
    flags = ["--name", name, "--trainer.max_steps", "1"]
    says(refused(["fit", "--config", TINY, *flags], capsys), [*words, "give another checkpoint.dir or name"])
    assert (tmp_path / "checkpoints" / "taken").read_text() == "mine"


def test_a_run_that_went_on_elsewhere_since_it_was_read_is_not_branched_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process saved and ended between the reading of `last` and here."""
    folder = tmp_path / "tiny" / "version_0"
    folder.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl"):
        (folder / name).touch()
    entry = {"config": {"name": "tiny", "checkpoint": {"dir": str(tmp_path)}}}
    resume, later = (running.Resume(folder / f"step-{n:07d}.ckpt", n, entry, newest=True) for n in (100, 200))
    monkeypatch.setattr(running, "last_intact", lambda _: later.path)
    monkeypatch.setattr(running.Resume, "read", lambda _: later)
    with pytest.raises(UserError, match="another process has trained it further just now; give the command again"):
        running.choose_directory(tmp_path, "tiny", resume)
    assert not (tmp_path / "tiny" / "version_1").exists()
    release_run_locks()


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_of_runs_that_was_there_before_stays(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(folder: Path) -> None:
        assert not recovery.DESCRIPTORS  # Windows removes no file that is open.
        shutil.rmtree(folder)

    monkeypatch.setattr(running, "shutil", SimpleNamespace(rmtree=remove))
    root = tmp_path / "runs"
    if there:
        root.mkdir()
    config = {"name": "mine", "checkpoint": {"dir": str(root)}}

    def refused_later() -> None:
        with running.Run.open(config, {}) as run:
            assert run.directory.is_dir()
            raise UserError("what a logger finds wrong when training starts")

    with pytest.raises(UserError):
        refused_later()
    assert root.exists() == there
    assert not (root / "mine").exists()


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".", r"..\..\x", "a:b", 'a"', "a|b", "x.", " x", "CON", "nul.txt", "Com1", "lpt³ .a"]
)
def test_a_name_that_is_no_folder(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    says(refused(["fit", "--config", TINY, f"--name={name}"], capsys), ["name", "folder"])


# -- missing extras ------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without extras."""
    found = importlib.util.find_spec
    extras = {"wandb", "mlflow", "onnx", "onnxruntime", "safetensors", "gguf", "transformers"}
    hidden = lambda name, package=None: None if name in extras else found(name, package)  # noqa: E731

    def no_files(name: str) -> Any:
        raise PackageNotFoundError(name)

    # These first: one that is imported only now would take the wrong one for its own.
    for module in ("tinytf.export.formats", "tinytf.export.formats.onnx.runtime"):
        monkeypatch.setattr(f"{module}.find_spec", hidden)
    monkeypatch.setattr("importlib.util.find_spec", hidden)
    monkeypatch.setattr("tinytf.data.sources.builtin.files", no_files)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--config", TINY, "--config", "configs/loggers/wandb.yaml"], ["tracking.wandb", "tinytf[wandb]"]),
        (["fit", "--config", TINY, "--config", "configs/loggers/mlflow.yaml"], ["tracking.mlflow", "tinytf[mlflow]"]),
        (["fit", "--config", TINY, "--config", "configs/export.yaml"], ["export.formats", "tinytf[export]"]),
        (["fit", "--config", "configs/base.yaml"], ["tinytf[shakespeare]", "python-docs"]),
        (["export", "--ckpt_path", "toy.ckpt", "--formats", "onnx"], ["format onnx needs", "tinytf[export]"]),
        (["generate", "--model", "model.onnx"], ["onnxruntime", "tinytf[export]"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_missing_extra(
    arguments: list[str], words: list[str], bare: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "toy.ckpt")
    (tmp_path / "model.onnx").touch()
    from tinytf.data.sources.builtin import shakespeare

    shakespeare.cache_clear()
    says(refused(arguments, capsys), ["pip install", *words])
    assert not (tmp_path / "checkpoints").exists()


def test_a_tracker_that_knows_no_account(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")

    def no_account(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "login", no_account)
    monkeypatch.setattr(wandb.setup().settings, "mode", "online")  # Read from the environment once in a process.
    arguments = ["fit", "--config", TINY, "--config", "configs/loggers/wandb.yaml"]
    says(refused(arguments, capsys), ["tracking.wandb", "No API key", "WANDB_MODE=offline"])
    assert not (tmp_path / "checkpoints").exists()


# -- checkpoints, by every command that reads one ------------------------------------------------------------------

READERS = ["fit", "validate", "generate", "export", "inspect"]


def damaged(path: Path) -> None:
    write_checkpoint(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def newer(path: Path) -> None:
    write_checkpoint(path)
    content = torch.load(path, weights_only=True)
    content["tinytf"]["format"] = 99
    torch.save(content, path)


WRONG = {
    "a folder": (Path.mkdir, ["it is a folder"]),
    "a text": (lambda path: path.write_text("hello"), ["not a whole checkpoint archive"]),
    "half a file": (damaged, ["not a whole checkpoint archive"]),
    "another program's": (lambda path: torch.save({"state_dict": {}}, path), ["not written by tinytf"]),
    "a later format": (newer, ["format 99", "upgrade"]),
    "a dangling link": (lambda path: path.symlink_to("gone.ckpt"), ["links to gone.ckpt", "which is gone"]),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("command", READERS)
def test_a_wrong_checkpoint(command: str, kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make, words = WRONG[kind]
    make(tmp_path / "wrong.ckpt")
    says(refused([command, "--ckpt_path", "wrong.ckpt"], capsys), ["wrong.ckpt", *words])


@pytest.mark.parametrize("command", [name for name in READERS if name != "fit"])
def test_the_best_of_no_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    says(refused([command, "--ckpt_path", "best"], capsys), ["there is no run in checkpoints", "tinytf fit"])


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation_needs_a_checkpoint(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    says(refused([command], capsys), [f"tinytf {command} needs --ckpt_path", "best or last"])


def test_settings_that_a_checkpoint_has_fixed_are_named_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tinytf.cli.config.resume import refuse_changes
    from tinytf.errors import UserError

    saved = {"model": {"d_model": 64, "n_heads": 2}, "data": {"tokenizer": "char", "vocab_size": 100}}
    now = {"model": {"d_model": 128, "n_heads": 2}, "data": {"tokenizer": "char", "vocab_size": 300}}
    with pytest.raises(UserError) as caught:
        refuse_changes("validate", now, saved, tmp_path / "a.ckpt")
    assert len(caught.value.problems) == 2
    says(caught.value.problems[0], ["model.d_model is 128 here but 64 in", "its weights"])
    says(caught.value.problems[1], ["data.vocab_size is 300 here but 100 in"])


def test_settings_that_a_checkpoint_does_not_have_are_named_once(tmp_path: Path) -> None:
    from tinytf.cli.config.resume import refuse_changes
    from tinytf.errors import UserError

    now = {"model": {"d_model": 128, "n_heads": 2, "d_ff": 512}, "data": {"tokenizer": "char", "vocab_size": 300}}
    saved = {"model": {"d_model": 64, "d_ff": None}, "data": {"tokenizer": "char"}}
    with pytest.raises(UserError) as caught:
        refuse_changes("validate", now, saved, tmp_path / "a.ckpt")
    assert caught.value.problems == (
        f"checkpoint {tmp_path / 'a.ckpt'}: its config has no model.n_heads, data.vocab_size",
    )


def test_a_text_in_a_checkpoint_is_not_blamed_for_another_key(tmp_path: Path) -> None:
    from tinytf.cli.config.own_modules import refuse_missing_modules
    from tinytf.errors import UserError

    config = {"trainer": {"callbacks": {"class_path": "nosuch.Saver", "init_args": {"filename": "a.b"}}}, "model": {}}
    refuse_missing_modules(config, tmp_path / "a.ckpt", "trainer.max_steps")
    with pytest.raises(UserError, match=r"its trainer\.callbacks is nosuch\.Saver"):
        refuse_missing_modules(config, tmp_path / "a.ckpt", "trainer.callbacks")


@pytest.mark.parametrize("name", ["console", "com10", "aux-1", "x.y", "3e-4", ".hidden", "lr=[1e-3]"])
def test_a_name_that_is_a_folder(name: str) -> None:
    from tinytf.cli.config.validate import check_run_dir

    check_run_dir(name, "runs")


# -- the other commands --------------------------------------------------------------------------------------------

COMMANDS = [
    (["validte"], ["did you mean tinytf validate?"]),
    (["generate"], ["--ckpt_path", "--model"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--model", "a.onnx"], ["one of --ckpt_path and --model"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--prmpt", "x"], ["--prmpt", "did you mean --prompt?"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--prompt", "東京 Ω"], ["--prompt", "'Ω'", "position 3", "bpe"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--temperature", "-1"], ["--temperature", "-1"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--top_p", "2"], ["--top_p", "2"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--max_new_tokens", "0"], ["--max_new_tokens", "at least 1"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--prompt_file", "configs"], ["--prompt_file configs", "it is a folder"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--prompt_file", "gone"], ["--prompt_file gone", "No such file"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--stop", ""], ["--stop is empty"]),
    (["generate", "--model", "toy.ckpt"], ["--model toy.ckpt", ".onnx"]),
    (["generate", "--model", "gone.onnx"], ["--model gone.onnx", "No such file"]),
    pytest.param(
        ["generate", "--ckpt_path", "toy.ckpt", "--device", "cuda"],
        ["--device cuda", "this machine has none"],
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here"),
    ),
    (["export", "--ckpt_path", "toy.ckpt", "--formats", "onx"], ["'onx'", "did you mean onnx"]),
    (["export", "--ckpt_path", "toy.ckpt", "--formats", ""], ["--formats is empty"]),
    (["export", "--ckpt_path", "toy.ckpt", "--threshold", "int8.kl"], ["--threshold int8.kl"]),
    (["export", "--ckpt_path", "toy.ckpt", "--formats", "pt2", "--text", "gone"], ["--text gone", "No such file"]),
    (
        ["export", "--ckpt_path", "toy.ckpt", "--formats", "pt2", "--text", "toy.txt", "--output_dir", "toy.ckpt"],
        ["--output_dir toy.ckpt", "it is a file", "give a folder"],
    ),
    (
        ["export", "--ckpt_path", "short.ckpt", "--formats", "pt2", "--text", "toy.txt"],
        ["max_seq_len is 2", "3 tokens"],
    ),
    (["verify"], ["DIR", "verify --help"]),
    (["verify", "gone"], ["gone", "no such folder"]),
    (["verify", "configs"], ["configs", "export.json"]),
    (["verify", "broken"], ["broken/export.json", "not JSON"]),
    (["inspect"], ["--ckpt_path"]),
    (["inspect", "--ckpt_path", "toy.ckpt", "--diff", "gone.ckpt"], ["gone.ckpt", "no such file"]),
    (["runs", "--root", "gone"], ["--root gone", "no such folder"]),
    (["runs", "--root", "toy.ckpt"], ["--root toy.ckpt", "no such folder"]),
    (["runs", "--sort", "luck"], ["--sort", "luck", "best_val_loss"]),
    (["completion", "fish"], ["fish", "bash", "zsh"]),
    (["completion"], ["shell"]),
    (["config-schema", "x"], ["x"]),
]


@pytest.mark.parametrize(("arguments", "words"), COMMANDS)
def test_a_wrong_command_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "toy.ckpt")
    write_checkpoint(tmp_path / "short.ckpt", max_seq_len=2)
    (tmp_path / "toy.txt").write_text(TEXT * 20)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "export.json").write_text("{")
    says(refused(arguments, capsys), words)
