"""Wrong input gets one line a problem: what is wrong, where it stands, what to do; never a traceback.

The tables are by subject: flags and files of `fit`, several problems at once, checkpoints, data, the other commands.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands.tiny_checkpoint import TEXT, write_checkpoint
from tinytf.cli import main

TINY = "configs/tiny.yaml"
REPOSITORY = Path(__file__).parents[2]
GPU = torch.cuda.is_available()


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


# -- flags of fit --------------------------------------------------------------------------------------------------

FLAGS = [
    (["--model.d_modle", "4"], ["unknown key model.d_modle", "did you mean model.d_model?"]),
    (["--model.d_model", "abc"], ["model.d_model", "a whole number", "abc"]),
    (["--model.d_model", "null"], ["model.d_model", "a whole number", "null"]),
    (["--model.d_model", "65"], ["d_model 65", "n_heads 2"]),
    (["--model.d_model", "2"], ["heads of 1", "even"]),
    (["--model.n_kv_heads", "3"], ["n_heads 2", "n_kv_heads 3"]),
    (["--model.dropout", "1.5"], ["model.dropout is 1.5", "[0, 1)"]),
    (["--model.norm_eps", "0"], ["model.norm_eps is 0", "positive"]),
    (["--model.optimizer.lrr", "3"], ["model.optimizer.lrr", "did you mean model.optimizer.lr?"]),
    (["--model.optimizer.lr", "x"], ["model.optimizer.lr", "a number"]),
    (["--model.optimizer.lr", "-1"], ["model.optimizer", "lr is -1", "negative"]),
    (["--model.optimizer", "Foo"], ["model.optimizer", "Foo"]),
    (["--model.optimizer", "torch.optim.LBFGS"], ["model.optimizer: LBFGS", "parameter groups"]),
    (["--model.schedule", "Foo"], ["model.schedule", "Foo"]),
    (["--model.schedule.warmup_steps", "-1"], ["model.schedule.warmup_steps is -1"]),
    (["--model.compile", "maybe"], ["model.compile", "auto or true or false"]),
    (["--model.vocab_size", "5"], ["model.vocab_size", "tokenizer"]),
    (["--trainer.precision", "bf8"], ["trainer.precision", "32-true", "bf8"]),
    (["--trainer.max_epochs", "3"], ["trainer.max_epochs", "trainer.max_steps"]),
    (["--trainer.fast_dev_run", "true"], ["trainer.fast_dev_run", "tiny.yaml"]),
    (["--trainer.max_steps", "0"], ["trainer.max_steps is 0"]),
    (["--trainer.max_steps"], ["trainer.max_steps", "expected one argument"]),
    (["--trainer.val_check_interval", "0.5"], ["trainer.val_check_interval", "a whole number"]),
    (["--trainer.devices", "0"], ["trainer", "devices"]),
    (["--trainer.strategy", "ddpp"], ["trainer", "ddpp"]),
    (["--trainer.gradient_clip_algorithm", "half"], ["trainer", "half"]),
    (["--trainer.accelerator", "gpuu"], ["trainer.accelerator", "cpu", "gpuu"]),
    pytest.param(
        ["--trainer.accelerator", "gpu"],
        ["trainer.accelerator gpu: this machine has none", "cpu"],
        marks=pytest.mark.skipif(GPU, reason="there is one here"),
        id="no GPU",
    ),
    (["--checkpoint.keep", "-1"], ["checkpoint.keep is -1"]),
    (["--checkpoint.every_steps", "5"], ["checkpoint.every_steps", "checkpoint.every_n_steps"]),
    (["--tracking.loss_smoothing", "1"], ["tracking.loss_smoothing is 1", "below 1"]),
    (["--export.at_end", "true", "--export.formats", "[onyx]"], ["export.formats", "onyx", "onnx"]),
    (["--data.seq_len", "4096"], ["data.seq_len 4096", "model.max_seq_len 64"]),
    (["--data.batch_size", "0"], ["data.batch_size is 0"]),
    (["--seed_everything", "-5"], ["seed_everything is -5", "at least 0"]),
    (["--trainer.gradient_clip_val", "-1"], ["trainer.gradient_clip_val is -1", "at least 0"]),
    (["--seed_everything", "x"], ["seed_everything", "a whole number"]),
    (["--weights_only", "false"], ["weights_only", "never unpickled"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
    (["--config", "configs"], ["configs", "Is a directory"]),
    (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "no such file"]),
    (["--ckpt_path", "http://localhost/a.ckpt"], ["only local files", "download it first"]),
    (["stray"], ["stray", "--key value"]),
    (["--model", "3"], ["model: 3 is no YAML file", "--model.KEY"]),
]


@pytest.mark.parametrize(("flags", "words"), FLAGS)
def test_a_wrong_flag(flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    says(refused(["fit", "--config", TINY, *flags], capsys), words)
    assert not (tmp_path / "checkpoints").exists(), "wrong input left a run folder"


# -- files ---------------------------------------------------------------------------------------------------------

FILES = [
    ("model:\n  d_modle: 4\n", ["bad.yaml:2: ", "model.d_modle", "model.d_model?"]),
    ("modle:\n  d_model: 4\n", ["bad.yaml:2: ", "unknown key modle.d_model", "did you mean model.d_model?"]),
    ("model:\n  d_model: [4]\n", ["bad.yaml:2: ", "model.d_model", "a whole number"]),
    ("model:\n  d_model:\n", ["bad.yaml:2: ", "model.d_model", "got null"]),
    ("model: 3\n", ["bad.yaml:1: ", "model: expected keys and values, got 3"]),
    ("model:\n  seed: 3\n", ["bad.yaml:2: ", "model.seed", "use seed_everything"]),
    ("config: other.yaml\n", ["bad.yaml:1: ", "--config"]),
    ("model: {d_model: 4\n", ["bad.yaml:2", "not YAML"]),
    ("model:\n\td_model: 4\n", ["bad.yaml:2", "not YAML"]),
    ("- 1\n", ["bad.yaml", "keys and values"]),
    ("model:\n  d_ff: 64\ndata: {}\nmodel:\n  d_ff: 64\n", ["bad.yaml:4: ", "model stands twice", "line 1"]),
    ("model:\n  d_ff: 64\n  d_ff: 128\n", ["bad.yaml:3: ", "model.d_ff stands twice", "line 2", "keep one"]),
    (
        "model:\n  optimizer:\n    class_path: tinytf.training.MuonAdamW\n    init_args:\n      lrr: 3\n",
        ["bad.yaml:5: ", "model.optimizer.lrr", "did you mean model.optimizer.lr?"],
    ),
    (
        "model:\n  optimizer:\n    class_path: nosuch.Thing\n",
        ["bad.yaml:2: ", "model.optimizer", "nosuch.Thing cannot be imported"],
    ),
    (
        "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {monitr: 3}\n",
        ["bad.yaml:4: ", "trainer.callbacks.monitr", "did you mean trainer.callbacks.monitor?"],
    ),
    (
        "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n",
        ["bad.yaml:2: ", "trainer.callbacks", "EarlyStopping needs monitor"],
    ),
    ("tracking:\n  wandb: true\n", ["bad.yaml:2: ", "tracking.wandb", "keys and values or null", "got true"]),
    ("tracking:\n  wandb: {projct: x}\n", ["bad.yaml:2: ", "did you mean tracking.wandb.project?"]),
    ("ckpt_path: nowhere.ckpt\n", ["nowhere.ckpt"]),
    ("data:\n  batch_size: 0\n", ["bad.yaml:2: ", "data.batch_size is 0"]),
    ("model:\n  n_heads: 3\n", ["bad.yaml:2: ", "model.d_model 64", "n_heads 3"]),
    ("\nmodel:\n  max_seq_len: 32\n", ["bad.yaml:3: ", "data.seq_len 64", "model.max_seq_len 32"]),
]


@pytest.mark.parametrize(("text", "words"), FILES, ids=[repr(text)[:60] for text, _ in FILES])
def test_a_wrong_file(text: str, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    says(refused(["fit", "--config", TINY, "--config", "bad.yaml"], capsys), words)
    assert not (tmp_path / "checkpoints").exists(), "wrong input left a run folder"


def test_a_file_that_is_not_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff\n")
    says(refused(["fit", "--config", "bad.yaml"], capsys), ["bad.yaml", "byte 6", "not UTF-8"])


# -- all problems at once ------------------------------------------------------------------------------------------

MANY = """\
trainer:
  max_steps: 0
  precision: bf8
  max_epochs: 3
model:
  d_modle: 4
  n_kv_heads: 3
  dropout: 1.5
  dropout: 2.5
  optimizer:
    class_path: tinytf.training.MuonAdamW
    init_args:
      lrr: 3
      muon_lr: -1
  schedule:
    class_path: tinytf.training.Linear
    init_args:
      warmup_steps: -1
data:
  batch_size: 0
  num_workers: x
  seq_len: 4096
checkpoint: 5
tracking:
  samples:
    promts: []
"""


def test_all_problems_of_a_config_are_told_at_once_in_its_order(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "many.yaml").write_text(MANY)
    lines = lines_of(["fit", "--config", TINY, "--config", "many.yaml", "--model.d_ff", "x", "stray"], capsys)
    wanted = [
        ("many.yaml:2: ", "max_steps is 0"),
        ("many.yaml:3: ", "precision"),
        ("many.yaml:4: ", "max_epochs"),
        ("many.yaml:6: ", "model.d_modle"),
        ("many.yaml:7: ", "n_kv_heads 3"),
        ("many.yaml:9: ", "dropout is 2.5"),
        ("many.yaml:9: ", "dropout stands twice"),
        ("many.yaml:10: ", "muon_lr is -1"),
        ("many.yaml:13: ", "optimizer.lrr"),
        ("many.yaml:18: ", "warmup_steps is -1"),
        ("many.yaml:20: ", "batch_size is 0"),
        ("many.yaml:21: ", "num_workers"),
        ("many.yaml:22: ", "seq_len 4096"),
        ("many.yaml:23: ", "checkpoint"),
        ("many.yaml:26: ", "promts"),
        ("model.d_ff", "a whole number"),
        ("stray", "no flag"),
    ]
    for start, word in wanted:
        assert any(line.startswith(start) and word in line for line in lines), (start, word, lines)
    assert len(lines) == len(wanted), lines
    numbers = [int(line.split(":")[1]) for line in lines if line.startswith("many.yaml")]
    assert numbers == sorted(numbers)


def test_each_file_answers_for_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("model:\n  d_model: wide\n")
    (tmp_path / "two.yaml").write_text("\nmodel:\n  d_model: 64\n  n_laiers: 2\n")
    lines = lines_of(["fit", "--config", "one.yaml", "--config", "two.yaml"], capsys)
    assert [line.split(": ")[0] for line in lines] == ["one.yaml:2", "two.yaml:4"]


def test_files_that_cannot_be_read_are_named_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("a: [\n")
    lines = lines_of(["fit", "--config", "one.yaml", "--config", "nowhere.yaml"], capsys)
    assert len(lines) == 2


def test_what_hangs_on_a_value_that_is_wrong_itself_is_not_guessed_at(capsys: pytest.CaptureFixture[str]) -> None:
    says(refused(["fit", "--config", TINY, "--model.d_model", "x", "--model.n_heads", "7"], capsys), ["d_model", "x"])


def test_a_mistyped_key_does_not_hide_what_is_wrong_in_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model.n_laiers=3", "--data.batch_size=-1", "--model.optimizer.lrr=1", "--checkpoint.keep=-1"]
    assert len(lines_of(["fit", "--config", TINY, *flags], capsys)) == 4


def test_nothing_is_imported_on_the_word_of_a_key_that_names_no_class(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "bad.yaml").write_text("model:\n  d_modle: {class_path: evil.Thing}\ndata:\n  corpus: [evil.Thing]\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(lines_of(["fit", "--config", "bad.yaml"], capsys)) == 2
    assert "evil" not in sys.modules


# -- data ----------------------------------------------------------------------------------------------------------

URL = "http://127.0.0.1:9/a.txt"

DATA = [
    (["--data.corpus", "nowhere.txt"], ["nowhere.txt", "no such file", "python-docs"]),
    (["--data.corpus", "nowhere/*.txt"], ["nowhere/*.txt", "matches no file"]),
    (["--data.corpus", "empty"], ["empty", "no *.txt"]),
    (["--data.corpus", "empty.txt"], ["empty.txt", "no text at all"]),
    (["--data.corpus", "latin.txt"], ["latin.txt", "offset 3", "not UTF-8", "iconv"]),
    (["--data.corpus", "short.txt"], ["train split has 18 tokens", "data.seq_len 64"]),
    (["--data.corpus", URL], [URL, "#sha256="]),
    (["--data.corpus", f"{URL}#sha256=12"], ["64 hexadecimal digits"]),
    (["--data.corpus", f"{URL}#sha256={'0' * 64}"], [URL, "could not be fetched"]),
    (["--data.corpus", f"FILE#sha256={'0' * 64}"], ["its sha256 is", "nothing was kept"]),
    (["--data.batch_size", "100000"], ["data.batch_size 100000", "larger than an epoch", "lower data.batch_size"]),
    (["--data.tokenizer", "nowhere.json"], ["tokenizer nowhere.json", "char, bpe"]),
    (["--data.tokenizer", TINY], ["tokenizer configs/tiny.yaml", "no tokenizer.json"]),
    (["--data.tokenizer", "bpe", "--data.vocab_size", "10"], ["data.vocab_size 10", "at least 258"]),
    (["--data.val_fraction", "1"], ["data.val_fraction is 1", "between 0 and 1"]),
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

    monkeypatch.setattr("tinytf.data.cache.os.fsync", full)
    flags = ["--data.cache_dir", "new", "--trainer.max_steps", "1"]
    says(refused(["fit", "--config", TINY, *flags], capsys), ["No space left on device", "make room"])


def test_a_folder_of_runs_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    flags = ["--checkpoint.dir", "taken", "--trainer.max_steps", "1"]
    says(refused(["fit", "--config", TINY, *flags], capsys), ["checkpoint.dir", "taken", "another folder"])
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "a/b", "..", "."])
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

    monkeypatch.setattr("importlib.util.find_spec", hidden)
    for module in ("tinytf.export.formats", "tinytf.export.running"):
        monkeypatch.setattr(f"{module}.find_spec", hidden)
    monkeypatch.setattr("tinytf.data.shakespeare.files", no_files)


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
    from tinytf.data.shakespeare import shakespeare

    shakespeare.cache_clear()
    says(refused(arguments, capsys), ["pip install", *words])
    assert not (tmp_path / "checkpoints").exists()


def test_a_tracker_that_knows_no_account(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    def no_account(_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(WandbLogger, "experiment", property(no_account))
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
    from tinytf.commands.resuming import refuse_changes
    from tinytf.errors import UserError

    saved = {"model": {"d_model": 64, "n_heads": 2}, "data": {"tokenizer": "char", "vocab_size": 100}}
    now = {"model": {"d_model": 128, "n_heads": 2}, "data": {"tokenizer": "char", "vocab_size": 300}}
    with pytest.raises(UserError) as caught:
        refuse_changes("validate", now, saved, tmp_path / "a.ckpt")
    assert len(caught.value.problems) == 2
    says(caught.value.problems[0], ["model.d_model is 128 here but 64 in", "its weights"])
    says(caught.value.problems[1], ["data.vocab_size is 300 here but 100 in"])


# -- the other commands --------------------------------------------------------------------------------------------

COMMANDS = [
    (["validte"], ["did you mean validate?"]),
    (["generate"], ["--ckpt_path", "--model"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--model", "a.onnx"], ["one of --ckpt_path and --model"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--prmpt", "x"], ["--prmpt", "did you mean --prompt?"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--prompt", "東京 Ω"], ["--prompt", "'Ω'", "position 3", "bpe"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--temperature", "-1"], ["--temperature", "-1"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--top_p", "2"], ["--top_p", "2"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--max_new_tokens", "0"], ["--max_new_tokens", "at least 1"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--prompt_file", "configs"], ["--prompt_file configs", "directory"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--prompt_file", "gone"], ["--prompt_file gone", "No such file"]),
    (["generate", "--ckpt_path", "toy.ckpt", "--stop", ""], ["--stop is empty"]),
    (["generate", "--model", "toy.ckpt"], ["--model toy.ckpt", ".onnx"]),
    (["generate", "--model", "gone.onnx"], ["--model gone.onnx", "no such file"]),
    pytest.param(
        ["generate", "--ckpt_path", "toy.ckpt", "--device", "cuda"],
        ["--device cuda", "this machine has none"],
        marks=pytest.mark.skipif(GPU, reason="there is one here"),
    ),
    (["export", "--ckpt_path", "toy.ckpt", "--formats", "onx"], ["'onx'", "did you mean onnx"]),
    (["export", "--ckpt_path", "toy.ckpt", "--formats", ""], ["--formats is empty"]),
    (["export", "--ckpt_path", "toy.ckpt", "--threshold", "int8.kl"], ["--threshold int8.kl"]),
    (["export", "--ckpt_path", "toy.ckpt", "--formats", "pt2", "--text", "gone"], ["--text gone", "No such file"]),
    (
        ["export", "--ckpt_path", "toy.ckpt", "--formats", "pt2", "--text", "toy.txt", "--output_dir", "toy.ckpt"],
        ["--output_dir toy.ckpt", "it is a file", "give a folder"],
    ),
    (["export", "--ckpt_path", "short.ckpt", "--formats", "pt2", "--text", TINY], ["max_seq_len is 2", "3 tokens"]),
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


def test_there_are_sixty_and_each_names_what_to_look_at() -> None:
    tables: list[Any] = [*FLAGS, *FILES, *DATA, *COMMANDS]
    rows = {json.dumps(getattr(row, "values", row)[0]) for row in tables}
    assert len(rows) + len(WRONG) * len(READERS) >= 60
    assert len(rows) == len(tables)
