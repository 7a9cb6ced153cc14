"""Wrong settings of `fit` get one line: what is wrong, where it stands, what to do; never a traceback.

The other commands, checkpoints and texts are in test_messages_elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.wrong_input import TINY, refused, says
from tests.cli.wrong_input import in_an_empty_folder as in_an_empty_folder
from tinytf.cli.config.keys import OTHER_WORDS, REFUSED, Keys, unknown_key
from tinytf.cli.config.parser import parser_of
from tinytf.cli.main import COMMANDS, OTHER_NAMES, main

# -- flags of fit --------------------------------------------------------------------------------------------------

FLAGS = [
    (["--model.d_modle", "4"], ["unknown key model.d_modle", "did you mean model.d_model?"]),
    (["--model.d_model", "abc"], ["model.d_model", "an integer", "abc"]),
    (["--model.d_model", "null"], ["model.d_model", "an integer", "null"]),
    (["--model.d_model", "65"], ["d_model 65", "n_heads 2"]),
    (["--model.d_model", "2"], ["heads of 1", "even"]),
    (["--model.n_kv_heads", "3"], ["n_heads 2", "n_kv_heads 3"]),
    (["--model.dropout", "1.5"], ["model.dropout is 1.5", "[0, 1)"]),
    (["--model.norm_eps", "0"], ["model.norm_eps is 0", "positive"]),
    (
        ["--model.optimizer.lrr", "3"],
        ["optimizer.lrr", "did you mean model.optimizer.lr or model"],
    ),
    (["--model.optimizer.lr", "x"], ["model.optimizer.lr", "a number"]),
    (["--model.optimizer", "torch.optim.Adamw"], ["model.optimizer", "Adamw", "did you mean torch.optim.AdamW?"]),
    (["--model.optimizer", "AdamW", "--model.optimizer.lr", "abc"], ["model.optimizer.lr", "a number", "got abc"]),
    (["--model.optimizer.lr", "-1"], ["model.optimizer", "lr is -1", "negative"]),
    (["--model.optimizer", "Foo"], ["model.optimizer", "Foo"]),
    (["--model.optimizer", "torch.optim.LBFGS"], ["model.optimizer: LBFGS", "parameter groups"]),
    (["--model.schedule", "Foo"], ["model.schedule", "Foo"]),
    (["--model.schedule.warmup_steps", "-1"], ["model.schedule.warmup_steps is -1"]),
    (["--model.compile", "maybe"], ["model.compile", "auto or true or false"]),
    (["--model.vocab_size", "5"], ["model.vocab_size", "tokenizer"]),
    (["--trainer.precision", "bf8"], ["trainer.precision", "32-true", "bf8"]),
    (["--trainer.max_epochs", "3"], ["trainer.max_epochs", "trainer.max_steps"]),
    (["--trainer.fast_dev_run", "true"], ["trainer.fast_dev_run", "debug/step"]),
    (["--trainer.max_steps", "0"], ["trainer.max_steps is 0"]),
    (["--trainer.max_steps"], ["trainer.max_steps", "expected one argument"]),
    (["--trainer.val_check_interval", "0.5"], ["trainer.val_check_interval", "an integer"]),
    (["--trainer.devices", "0"], ["trainer", "devices"]),
    (["--trainer.limit_test_batches", "1"], ["trainer.limit_test_batches", "give it to tinytf test"]),
    (["--trainer.limit_predict_batches", "0.5"], ["trainer.limit_predict_batches", "give it to tinytf predict"]),
    (["--trainer.strategy", "ddpp"], ["trainer", "ddpp"]),
    (["--trainer.gradient_clip_algorithm", "half"], ["trainer", "half"]),
    (["--trainer.accelerator", "gpuu"], ["trainer.accelerator", "cpu", "gpuu"]),
    pytest.param(
        ["--trainer.accelerator", "gpu"],
        ["trainer.accelerator gpu: this machine has none", "cpu"],
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here"),
        id="no GPU",
    ),
    (["--checkpoint.keep_last", "-1"], ["checkpoint.keep_last is -1"]),
    (["--checkpoint.every_steps", "5"], ["checkpoint.every_steps", "checkpoint.every_n_steps"]),
    (["--tracking.loss.smoothing", "1"], ["tracking.loss.smoothing is 1", "below 1"]),
    (["--export.at_end", "true", "--export.formats", "[onyx]"], ["export.formats", "onyx", "onnx"]),
    (["--data.seq_len", "4096"], ["data.seq_len 4096", "model.max_seq_len 64"]),
    (["--data.batch_size", "0"], ["data.batch_size is 0"]),
    (["--seed_everything", "-5"], ["seed_everything is -5", "at least 0"]),
    (["--trainer.gradient_clip_val", "-1"], ["trainer.gradient_clip_val is -1", "at least 0"]),
    (["--seed_everything", "x"], ["seed_everything", "an integer"]),
    (["--weights_only", "false"], ["weights_only", "never unpickled"]),
    (["--config", "nowhere.yaml"], ["--config nowhere.yaml", "No such file"]),
    (["--config", "configs"], ["--config configs", "it is a folder"]),
    (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "no such file"]),
    (["--ckpt_path", "http://localhost/a.ckpt"], ["only local files", "download it first"]),
    (["stray"], ["stray: not a flag", "--key value", "see tinytf fit --help"]),
    (["--model", "3"], ["--model: it is a section", "--model.KEY"]),
]


WORDS = {
    "lr": "did you mean model.optimizer.lr or model.optimizer.muon_lr?",
    "optimizer.lr": "did you mean model.optimizer.lr or model.optimizer.muon_lr?",
    "trainer.learning-rate": "did you mean model.optimizer.lr or model.optimizer.muon_lr?",
    "max_steps": "did you mean trainer.max_steps?",
    "max-step": "did you mean trainer.max_steps?",
    "steps": "did you mean trainer.max_steps?",
    "max_iters": "did you mean trainer.max_steps?",
    "batch_size": "did you mean data.batch_size?",
    "per_device_train_batch_size": "did you mean data.batch_size?",
    "block_size": "did you mean data.seq_len?",
    "model.seq_len": "did you mean data.seq_len?",
    "d_model": "did you mean model.d_model?",
    "model.n_embd": "did you mean model.d_model?",
    "n_layer": "did you mean model.n_layers?",
    "device": "did you mean trainer.accelerator?",
    "out_dir": "did you mean checkpoint.dir?",
    "seed": "did you mean seed_everything?",
    "resume_from_checkpoint": "did you mean ckpt_path?",
    "warmup_iters": "did you mean model.schedule.warmup_steps?",
    "temperature": "did you mean tracking.samples.temperature?",
    "every_n_steps": "checkpoint.every_n_steps or tracking.norms.every_n_steps",
    "epochs": "epochs is not a setting of tinytf: steps are the only unit: use trainer.max_steps",
    "num_train_epochs": "use trainer.max_steps",
    "max_epochs": "use trainer.max_steps",
}
"""Words of other programs, and keys without their section."""


@pytest.fixture(scope="module", name="keys")
def keys_of_fit() -> Keys:
    return Keys(parser_of("fit").get_defaults().keys())


@pytest.mark.parametrize(("word", "answer"), WORDS.items())
def test_a_word_of_another_program_names_the_key(word: str, answer: str, keys: Keys) -> None:
    assert answer in str(unknown_key(word, keys.all))


def test_each_word_of_another_program_stands_for_a_key_that_there_is(keys: Keys) -> None:
    assert set(OTHER_WORDS) <= {*keys.all, *REFUSED}
    words = " ".join(OTHER_WORDS.values()).split()
    assert sorted(words) == sorted(set(words))


def test_a_key_without_its_section_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(["fit", "--config", TINY, "--lr", "3"], capsys)
    assert line == "unknown key lr; did you mean model.optimizer.lr or model.optimizer.muon_lr?"
    (tmp_path / "bad.yaml").write_text("model:\n  n_embd: 3\n")
    line = refused(["fit", "--config", "bad.yaml"], capsys)
    assert line == "bad.yaml:2: unknown key model.n_embd; did you mean model.d_model?"


@pytest.mark.parametrize(("command", "near"), [
    ("train", "fit"), ("chat", "generate --interactive"), ("eval", "validate"), ("sample", "generate"),
    ("resume", "fit --ckpt_path last"), ("convert", "export"), ("fitt", "fit"), ("help", "--help"),
    ("finetune", "fit --config … --model.base PATH"),
])  # fmt: skip
def test_a_command_of_another_program_names_ours(command: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused([command, "--config", TINY], capsys) == f"unknown command {command!r}; did you mean tinytf {near}?"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_before_a_command_is_its_help(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([flag, "runs"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: tinytf runs ")


def test_each_other_name_of_a_command_stands_for_one_that_there_is() -> None:
    assert {name.partition(" ")[0] for name in OTHER_NAMES} <= {*COMMANDS, "--help", "--version"}
    words = " ".join(OTHER_NAMES.values()).split()
    assert sorted([*words, *COMMANDS]) == sorted({*words, *COMMANDS})


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_an_error_names_the_help_of_its_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    says(refused([command, "--zzzzz", "1"], capsys), ["unknown key zzzzz", f"see tinytf {command} --help"])
    if command != "fit":
        says(refused([command], capsys), ["needs --ckpt_path", f"see tinytf {command} --help"])


@pytest.mark.parametrize("flag", ["trainer.max_steps", "model.optimizer.lr", "checkpoint.keep_last", "tracking.wandb"])
def test_a_flag_that_an_evaluation_would_ignore_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["validate", "--ckpt_path", "best", f"--{flag}=3"], capsys)
    assert line == f"--{flag}: validate does not use it; see tinytf validate --help"


def test_a_file_of_the_training_is_one_for_an_evaluation_too(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trainer.limit_val_batches=1", "--data.tokenizer", "char"]
    with pytest.raises(SystemExit):
        main(["validate", "--config", TINY, *flags, "--print_config"])
    assert "limit_val_batches: 1" in capsys.readouterr().out


def test_1e3_is_a_whole_number_in_flags_and_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text(
        "trainer: {max_steps: 1e3, val_check_interval: 1.5e2}\nmodel: {rope_theta: 1e4}"
    )
    with pytest.raises(SystemExit):
        main(["fit", "--config", "some.yaml", "--trainer.log_every_n_steps", "1e1", "--name", "1e3", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    numbers = [config["trainer"][f"{key}"] for key in ("max_steps", "val_check_interval", "log_every_n_steps")]
    assert list(map(repr, [*numbers, config["model"]["rope_theta"], config["name"]])) == [
        "1000", "150", "10", "10000.0", "'1e3'"
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["1.5e0", "1e-3", "1000.0", "1e300"])
def test_what_is_not_a_whole_number_is_refused(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(f"trainer: {{max_steps: {text}}}")
    for argv in (["--trainer.max_steps", text], ["--config", "bad.yaml"]):
        says(refused(["fit", *argv], capsys), ["trainer.max_steps: expected an integer"])


@pytest.mark.parametrize(("flags", "words"), FLAGS)
def test_a_wrong_flag(flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    says(refused(["fit", "--config", TINY, *flags], capsys), words)
    assert not (tmp_path / "checkpoints").exists(), "wrong input left a run folder"


# -- files ---------------------------------------------------------------------------------------------------------

FILES = [
    ("model:\n  d_modle: 4\n", ["bad.yaml:2: ", "model.d_modle", "model.d_model?"]),
    ("modle:\n  d_model: 4\n", ["bad.yaml:2: ", "unknown key modle.d_model", "did you mean model.d_model?"]),
    ("model:\n  d_model: [4]\n", ["bad.yaml:2: ", "model.d_model", "an integer"]),
    ("model:\n  d_model:\n", ["bad.yaml:2: ", "model.d_model", "got null"]),
    ("name:\n", ["bad.yaml:1: ", "name: expected a text, got null"]),
    ("checkpoint: {dir: null}\n", ["bad.yaml:1: ", "checkpoint.dir: expected a text, got null"]),
    ("data:\n  corpus: null\n", ["bad.yaml:2: ", "data.corpus: expected a text, got null"]),
    ("model: 3\n", ["bad.yaml:1: ", "model: expected keys and values, got 3"]),
    ("model:\n  seed: 3\n", ["bad.yaml:2: ", "model.seed", "use seed_everything"]),
    ("config: other.yaml\n", ["bad.yaml:1: ", "--config"]),
    ("model: {d_model: 4\n", ["bad.yaml:2", "not YAML"]),
    ("model:\n\td_model: 4\n", ["bad.yaml:2", "not YAML"]),
    ("- 1\n", ["bad.yaml", "keys and values"]),
    ("model:\n  d_ff: 64\ndata: {}\nmodel:\n  d_ff: 64\n", ["bad.yaml:4: ", "model is set twice", "line 1"]),
    ("model:\n  d_ff: 64\n  d_ff: 128\n", ["bad.yaml:3: ", "model.d_ff is set twice", "line 2", "keep one"]),
    (
        "model:\n  optimizer:\n    class_path: tinytf.training.MuonAdamW\n    init_args:\n      lrr: 3\n",
        ["bad.yaml:5: ", "model.optimizer.lrr", "did you mean model.optimizer.lr or model.optimizer.muon_lr?"],
    ),
    (
        "model:\n  optimizer:\n    class_path: nosuch.Thing\n",
        ["bad.yaml:2: ", "model.optimizer", "cannot import nosuch.Thing"],
    ),
    (
        "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {monitr: 3}\n",
        ["bad.yaml:4: ", "trainer.callbacks.monitr", "did you mean trainer.callbacks.monitor?"],
    ),
    (
        "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n",
        ["bad.yaml:2: ", "trainer.callbacks", "EarlyStopping needs monitor"],
    ),
    ("tracking:\n  wandb: true\n", ["bad.yaml:2: ", "tracking.wandb", "keys and values", "null", "got true"]),
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


def test_the_first_problem_is_named_and_a_flag_does_not_blame_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["fit", "--config", TINY, "--model.d_model", "x", "--model.n_heads", "7"], capsys)
    assert line == "model.d_model: expected an integer, got x"


def test_the_last_file_that_sets_a_key_is_blamed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("model:\n  d_model: wide\n")
    (tmp_path / "two.yaml").write_text("\nmodel:\n  d_model: wider\n")
    line = refused(["fit", "--config", "one.yaml", "--config", "two.yaml"], capsys)
    assert line.startswith("two.yaml:3: model.d_model")


@pytest.mark.parametrize("section", ["model", "trainer", "tracking", "checkpoint", "data", "export"])
def test_an_empty_section_changes_nothing(section: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text(f"{section}:\n  # d_model: 64\n")
    printed = []
    for extra in ([], ["--config", "empty.yaml"]):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--config", TINY, *extra, "--print_config"])
        assert stop.value.code == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_flags_win_over_files_wherever_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model.n_layers", "3", "--config", TINY, "--print_config"])
    assert "n_layers: 3" in capsys.readouterr().out


def test_nothing_is_imported_on_the_word_of_a_key_that_names_no_class(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "bad.yaml").write_text("model:\n  d_modle: {class_path: evil.Thing}\ndata:\n  corpus: [evil.Thing]\n")
    monkeypatch.syspath_prepend(tmp_path)
    refused(["fit", "--config", "bad.yaml"], capsys)
    assert "evil" not in sys.modules
