"""Wrong settings of `fit` get one line a problem: what is wrong, where it stands, what to do; never a traceback.

The other commands, checkpoints and texts are in test_messages_elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.cli.wrong_input import TINY, lines_of, refused, says
from tests.cli.wrong_input import in_an_empty_folder as in_an_empty_folder

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
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here"),
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
