"""Values that no machine has, that a library refuses, or that a hurried hand types: one line, and nothing is left."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.cli.tiny_checkpoint import write_checkpoint
from tests.cli.wrong_input import TINY, refused, says
from tests.cli.wrong_input import in_an_empty_folder as in_an_empty_folder
from tinytf.cli.config.validate import check_gpus
from tinytf.cli.main import LONGEST, main
from tinytf.errors import UserError

LONG = "x" * 5_000

LIBRARIES = [
    (["--trainer.devices", "-2"], ["trainer"]),
    (["--trainer.devices", "-1", "--trainer.accelerator", "cpu"], ["trainer", "devices"]),
    (["--trainer.devices", "[0,0]"], ["trainer.devices is [0, 0]", "once"]),
    (["--trainer.devices", "zwei"], ["trainer", "devices"]),
    (["--trainer.devices", "1.5"], ["trainer", "devices"]),
    (["--trainer.accelerator", "tpu"], ["trainer.accelerator"]),
    (["--trainer.accelerator", "nan"], ["trainer.accelerator"]),
    (["--trainer.strategy", "nan"], ["trainer"]),
    (["--trainer.strategy", "deepspeed"], ["trainer"]),
    (["--trainer.plugins", "nan"], ["trainer.plugins"]),
    (["--trainer.profiler", "nan"], ["trainer"]),
    (["--trainer.limit_val_batches", "-1"], ["trainer", "limit_val_batches"]),
    (["--trainer.limit_val_batches", "1.5"], ["trainer", "limit_val_batches"]),
    (["--trainer.num_nodes", "0"], ["trainer", "num_nodes"]),
    (["--trainer.num_nodes", "-3"], ["trainer", "num_nodes"]),
    (["--trainer.gradient_clip_val", "nan"], ["trainer.gradient_clip_val", "got nan"]),
    (["--trainer.gradient_clip_val", "None"], ["a number or null, got None"]),
    (["--trainer.callbacks", "lightning.pytorch.callbacks.Timer", "--trainer.callbacks.duration", "soon"], ["Timer"]),
    (["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "x", "--trainer.callbacks.mode", "up"],
     ["EarlyStopping", "mode"]),
    (["--model.optimizer", "torch.optim.SparseAdam"], ["model.optimizer: SparseAdam"]),
    (["--model.optimizer", "torch.optim.LBFGS"], ["model.optimizer: LBFGS"]),
    (["--model.optimizer.lr", ".nan"], ["model.optimizer.lr", "nan"]),
    (["--model.optimizer.lr", "inf"], ["model.optimizer.lr", "inf"]),
    (["--model.optimizer.betas", "[2, 3]"], ["model.optimizer"]),
    (["--model.optimizer", "torch.optim.SGD", "--model.optimizer.momentum=-1"], ["model.optimizer: SGD", "momentum"]),
    (["--model.dropout", "nan"], ["model.dropout"]),
    (["--model.rope_theta", "-.inf"], ["model.rope_theta"]),
    (["--tracking.samples.temperature", "nan"], ["tracking.samples.temperature"]),
    (["--model.schedule", "torch.optim.lr_scheduler.SequentialLR"], ["model.schedule: SequentialLR", "use Linear"]),
]  # fmt: skip

SIZES = [
    (["--model.d_model", "100000000", "--model.n_heads", "100"], ["parameters", "GiB"]),
    (["--model.n_layers", "100000000"], ["model.n_layers 100000000", "GiB"]),
    (["--model.max_seq_len", "100000000000"], ["model.max_seq_len 100000000000", "GiB"]),
    (["--model.d_ff", "100000000000"], ["parameters", "GiB"]),
    (["--model.d_ff", "1" * 23], ["model.d_ff", "2**53"]),
    (["--data.batch_size", "100000000000"], ["data.batch_size 100000000000"]),
    (["--data.num_workers", "100000"], ["data.num_workers is 100000"]),
    (["--data.num_workers", "-1"], ["data.num_workers"]),
    (["--data.prepare_processes", "100000"], ["data.prepare_processes is 100000", "processes"]),
    (["--trainer.devices", "99999", "--trainer.accelerator", "cpu"], ["trainer.devices is 99999", "processes"]),
    (["--trainer.max_steps", "1" * 23], ["trainer.max_steps", "2**53"]),
    (["--trainer.max_steps", "-1"], ["trainer.max_steps is -1"]),
    (["--data.vocab_size", "-1"], ["data.vocab_size"]),
    (["--data.global_batch_size", "-8"], ["data.global_batch_size"]),
    (["--seed_everything", "1" * 23], ["seed_everything"]),
]

PLACES = [
    (["--ckpt_path", ""], ["--ckpt_path is empty"]),
    (["--ckpt_path=a\0b"], ["--ckpt_path", "embedded null"]),
    (["--ckpt_path", LONG], ["--ckpt_path", "File name too long"]),
    (["--ckpt_path", "~nosuch/x"], ["--ckpt_path ~nosuch/x"]),
    (["--ckpt_path", "/dev/zero"], ["--ckpt_path /dev/zero: it is a device"]),
    (["--ckpt_path", "pipe"], ["--ckpt_path pipe: it is a named pipe"]),
    (["--config", ""], ["--config is empty"]),
    (["--config", "~nosuch/x"], ["--config ~nosuch/x"]),
    (["--config", f"{LONG}.yaml"], ["--config", "File name too long"]),
    (["--config", LONG], ["--config", "File name too long"]),
    (["--config", "pipe"], ["--config pipe: it is a named pipe"]),
    (["--config", "/dev/zero"], ["--config /dev/zero: it is a device"]),
    (["--config", "/proc/self/mem"], ["--config /proc/self/mem"]),
    (["--checkpoint.dir", ""], ["checkpoint.dir is empty"]),
    (["--checkpoint.dir", "~nosuch/x"], ["checkpoint.dir ~nosuch/x"]),
    (["--checkpoint.dir=a\0b"], ["checkpoint.dir", "embedded null"]),
    (["--checkpoint.dir", LONG], ["checkpoint.dir", "File name too long"]),
    (["--checkpoint.dir", "/proc/x"], ["/proc/x"]),
    (["--checkpoint.dir", "pipe"], ["checkpoint.dir pipe"]),
    (["--name", " "], ["name ' '"]),
    (["--name", "a\nb"], [r"name 'a\nb'"]),
    (["--name", "a\u202eb"], [r"name 'a\u202eb'"]),
    (["--name", "\x1b[2J"], [r"name '\x1b[2J'"]),
    (["--name", LONG], ["name", "too long"]),
    (["--data.corpus=a\0b"], ["corpus"]),
    (["--data.corpus", ""], ["corpus"]),
    (["--data.corpus", f"{LONG}.txt"], ["corpus", "too long"]),
    (["--data.corpus", "ChainedScheduler"], ["corpus ChainedScheduler"]),
    (["--data.tokenizer=a\0b"], ["tokenizer"]),
]


def row(flags: list[str]) -> str:
    return " ".join(flags)[:50]


@pytest.mark.parametrize(("flags", "words"), LIBRARIES, ids=[row(flags) for flags, _ in LIBRARIES])
def test_what_a_library_refuses(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    says(refused(["fit", "--config", TINY, "--trainer.max_steps=1", *flags], capsys), words)
    assert not (tmp_path / "checkpoints").exists(), "wrong input left a run folder"


def test_a_function_in_place_of_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own_functions.py").write_text(
        "from torch.optim import SGD, Optimizer, lr_scheduler\n"
        "def optimizer(params) -> Optimizer: return SGD(params)\n"
        "def schedule(optimizer: Optimizer) -> lr_scheduler.LRScheduler: return lr_scheduler.ConstantLR(optimizer)\n"
    )
    for key in ("optimizer", "schedule"):
        line = refused(["fit", "--config", TINY, f"--model.{key}", f"own_functions.{key}"], capsys)
        says(line, [f"model.{key}: expected a class, got ", key])


@pytest.mark.parametrize(("flags", "words"), SIZES, ids=[row(flags) for flags, _ in SIZES])
def test_what_no_machine_has(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    says(refused(["fit", "--config", TINY, *flags], capsys), words)
    assert not (tmp_path / "checkpoints").exists(), "wrong input left a run folder"


@pytest.mark.skipif(os.name == "nt", reason="the places are those of POSIX")
@pytest.mark.parametrize(("flags", "words"), PLACES, ids=[row(flags) for flags, _ in PLACES])
def test_what_is_no_place(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    os.mkfifo("pipe")
    before = sorted(tmp_path.rglob("*"))
    says(refused(["fit", "--config", TINY, "--trainer.max_steps=1", *flags], capsys), words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--temperature", "1e-320"], ["temperature"]),
        (["--temperature", "nan"], ["--temperature"]),
        (["--threads", "99999999999"], ["--threads", "too large"]),
        (["--max_new_tokens", "\uff11\uff12"], ["--max_new_tokens", "not an integer"]),
        (["--max_new_tokens", "1_0"], ["--max_new_tokens", "not an integer"]),
        (["--max_new_tokens", "1" * 400], ["--max_new_tokens"]),
        (["--top_k", "\u0663"], ["--top_k"]),
        (["--top_p", "1e400"], ["--top_p"]),
        (["--seed", "1" * 23], ["--seed"]),
        (["--prompt_file", "pipe"], ["--prompt_file pipe: it is a named pipe"]),
        (["--prompt_file", "/dev/zero"], ["--prompt_file /dev/zero: it is a device"]),
        (["--prompt_file", ""], ["--prompt_file is empty"]),
        (["--prompt_file", LONG], ["--prompt_file", "too long"]),
    ],
)
def test_flags_of_generate(flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    write_checkpoint("toy.ckpt")
    says(refused(["generate", "--ckpt_path", "toy.ckpt", *flags], capsys), words)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *(("fit", f"--{value}") for value in ("data=s3://a/b", "export=zip://a::b.txt", "model=toy.yaml", "data={}")),
        ("validate", "--data=zip://a::b.txt"),
        ("plan", "--model=toy.yaml"),
        ("prepare", "--data=s3://a/b"),
    ],
)
def test_a_section_is_no_file(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("toy.yaml").write_text("d_model: 32\n")
    section = flag.partition("=")[0]
    says(refused([command, flag], capsys), [f"{section}: it is a section: give {section}.KEY"])


@pytest.mark.parametrize("flag", ["--threshold", "--formats", "--output_dir", "--ckpt_path"])
def test_a_value_of_any_length_is_quoted_in_part(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint("toy.ckpt")
    line = refused(["export", "--ckpt_path", "toy.ckpt", flag, "x" * 50_000], capsys)
    assert "xxx" in line
    assert "\u2026" in line
    assert len(line) <= LONGEST + len("tinytf: error: ")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that cannot be read is Linux' /proc/self/mem")
@pytest.mark.parametrize(
    ("command", "flags"),
    [
        *((command, ["--ckpt_path"]) for command in ("fit", "validate", "generate", "inspect", "export")),
        ("inspect", ["--ckpt_path", "toy.ckpt", "--diff"]),
    ],
)
def test_a_checkpoint_that_cannot_be_read(command: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint("toy.ckpt")
    says(refused([command, *flags, "/proc/self/mem"], capsys), ["/proc/self/mem: Input/output error"])


@pytest.mark.parametrize("command", ["fit", "validate", "generate", "inspect", "export"])
def test_a_checkpoint_that_states_a_million_layers(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "toy.ckpt")
    for key, value in (("n_layers", 1_000_000), ("d_model", 10**12), ("max_seq_len", 10**14), ("vocab_size", 10**15)):
        content = torch.load(tmp_path / "toy.ckpt", weights_only=True)
        content["tinytf"]["model"][key] = value
        torch.save(content, tmp_path / "vast.ckpt")
        watch = threading.Timer(60, os._exit, [77])
        watch.start()
        try:
            code = main([command, "--ckpt_path", "vast.ckpt"])
        finally:
            watch.cancel()
        assert code == 2 or command == "inspect"
        assert "Traceback" not in capsys.readouterr().err


def test_a_mistyped_key_with_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    says(refused(["fit", "--config", TINY, "--print_config", "--model.d_modle", "3"], capsys), ["model.d_modle"])
    says(refused(["fit", "--config", TINY, "--model.optimizer.lrr", "3", "--print_config"], capsys), ["lrr"])
    says(refused(["fit", "--config", TINY, "--print_config=model.x"], capsys), ["print_config"])
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("devices", "refused"),
    [
        (1, False),
        (2, False),
        (3, True),
        ("auto", False),
        (-1, False),
        ([0, 1], False),
        ([2], True),
        ("1,", False),
        ("0,2", True),
    ],
)
def test_more_gpus_than_there_are(devices: Any, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    trainer = SimpleNamespace(accelerator="cuda", devices=devices)
    with pytest.raises(UserError, match="this machine has 2 GPUs") if refused else nullcontext():
        check_gpus(trainer)
