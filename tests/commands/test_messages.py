"""Wrong input gets one line that names the key, says where it stands, and what to do; never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinytf.cli import main

TINY = "configs/tiny.yaml"
REPOSITORY = Path(__file__).parents[2]

FLAGS = [
    (["--model.d_modle", "4"], ["unknown key model.d_modle", "did you mean model.d_model?"]),
    (["--model.d_model", "abc"], ["model.d_model", "a whole number", "abc"]),
    (["--model.d_model", "65"], ["d_model 65", "n_heads 2"]),
    (["--model.d_model", "2"], ["heads of 1", "even"]),
    (["--model.n_kv_heads", "3"], ["n_heads 2", "n_kv_heads 3"]),
    (["--model.dropout", "1.5"], ["dropout is 1.5"]),
    (["--model.optimizer.lrr", "3"], ["model.optimizer.lrr"]),
    (["--model.optimizer.lr", "x"], ["model.optimizer.lr", "a number"]),
    (["--model.optimizer", "Foo"], ["model.optimizer", "Foo"]),
    (["--model.schedule", "Foo"], ["model.schedule", "Foo"]),
    (["--model.schedule.warmup_steps", "-1"], ["model.schedule.warmup_steps is -1"]),
    (["--model.compile", "maybe"], ["model.compile", "auto or true or false"]),
    (["--model.vocab_size", "5"], ["model.vocab_size", "tokenizer"]),
    (["--trainer.precision", "bf8"], ["trainer.precision", "32-true", "bf8"]),
    (["--trainer.max_epochs", "3"], ["trainer.max_epochs", "trainer.max_steps"]),
    (["--trainer.fast_dev_run", "true"], ["trainer.fast_dev_run", "tiny.yaml"]),
    (["--trainer.max_steps", "0"], ["trainer.max_steps is 0"]),
    (["--trainer.val_check_interval", "0.5"], ["trainer.val_check_interval", "a whole number"]),
    (["--trainer.devices", "0"], ["trainer"]),
    (["--trainer.accelerator", "gpuu"], ["trainer"]),
    (["--checkpoint.keep", "-1"], ["checkpoint.keep is -1"]),
    (["--checkpoint.every_steps", "5"], ["checkpoint.every_steps", "checkpoint.every_n_steps"]),
    (["--data.corpus", "nowhere.txt"], ["nowhere.txt"]),
    (["--data.seq_len", "4096"], ["data.seq_len 4096", "model.max_seq_len 64"]),
    (["--data.batch_size", "0"], ["data.batch_size is 0"]),
    (["--data.batch_size", "100000"], ["data.batch_size", "100000"]),
    (["--seed_everything", "x"], ["seed_everything", "a whole number"]),
    (["--weights_only", "false"], ["weights_only", "never unpickled"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
    (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "no such file"]),
    (["--ckpt_path", "http://localhost/a.ckpt"], ["only local files"]),
    (["stray"], ["stray"]),
]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that wrong input gets."""
    assert main(arguments) == 2
    said = capsys.readouterr().err
    lines = said.strip().splitlines()
    assert lines[-1].startswith("tinytf: error: ")
    assert "Traceback" not in said
    assert len([line for line in lines if line.startswith("tinytf: error")]) == 1
    return lines[-1]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("flags", "words"), FLAGS, ids=[" ".join(flags) for flags, _ in FLAGS])
def test_a_wrong_flag(flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(["fit", "--config", TINY, *flags], capsys)
    assert all(word in line for word in words), line
    assert not (tmp_path / "checkpoints").exists(), "wrong input left a run folder"


FILES = [
    ("model:\n  d_modle: 4\n", ["bad.yaml:2", "model.d_modle", "model.d_model?"]),
    ("modle:\n  d_model: 4\n", ["unknown key modle"]),
    ("model:\n  d_model: [4]\n", ["bad.yaml:2", "model.d_model", "a whole number"]),
    ("model: {d_model: 4\n", ["bad.yaml:2", "not YAML"]),
    ("- 1\n", ["bad.yaml", "keys and values"]),
    (
        "model:\n  optimizer:\n    class_path: tinytf.training.MuonAdamW\n    init_args:\n      lrr: 3\n",
        ["bad.yaml:5", "model.optimizer.lrr"],
    ),
    ("ckpt_path: nowhere.ckpt\n", ["nowhere.ckpt"]),
]


@pytest.mark.parametrize(("text", "words"), FILES, ids=[repr(text) for text, _ in FILES])
def test_a_wrong_file(text: str, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    line = refused(["fit", "--config", "bad.yaml"], capsys)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation_needs_a_checkpoint(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--ckpt_path" in refused([command], capsys)
    assert "there is no run" in refused([command, "--ckpt_path", "best"], capsys)


def test_an_unknown_command_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean validate?" in refused(["validte"], capsys)
