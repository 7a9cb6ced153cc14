"""`tinytf plan`: the numbers of a config, and refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinytf.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
GPT2 = ("--config", str(CONFIGS / "gpt2.yaml"))
MACHINE = ("--gpus", "8", "--gpu", "H100", "--memory", "80")


def plan(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["plan", *flags, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_the_numbers_of_gpt2(capsys: pytest.CaptureFixture[str]) -> None:
    told = plan(capsys, *GPT2, *MACHINE, "--mfu", "0.5")
    parameters = told["model"]["parameters"]
    assert parameters == 50257 * 768 + 12 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768 + 2 * 64) + 768
    assert told["model"]["flops_per_token"] == 6 * parameters + 12 * 12 * 768 * 1024
    assert told["precision"] == "bf16-mixed"  # Of the GPU named, whatever this machine multiplies.
    assert told["tokens_per_second"] == pytest.approx(8 * 989e12 * 0.5 / told["model"]["flops_per_token"])
    best = told["optimal_run"]
    assert best["tokens"] == 20 * parameters
    assert best["seconds"] == pytest.approx(best["tokens"] / told["tokens_per_second"])
    assert told["this_run"]["windows_per_step"] == 32 * 8 * 8
    assert set(told["memory"]) == {"ddp", "fsdp"}
    assert told["memory"]["ddp"]["weights"] == 4 * parameters
    assert told["memory"]["fsdp"]["weights"] == 4 * parameters / 8
    assert told["memory"]["fsdp"]["largest_micro_batch"] > told["memory"]["ddp"]["largest_micro_batch"] > 0


def test_flags_and_overlays_count_as_in_fit(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--model.n_layers", "2", "--model.optimizer", "torch.optim.AdamW", "--data.global_batch_size", "512")
    told = plan(capsys, *GPT2, *MACHINE, *flags, "--trainer.accumulate_grad_batches", "null", "--vocab_size", "1000")
    assert told["model"]["n_layers"] == 2
    assert told["model"]["vocab_size"] == 1000
    assert told["this_run"]["accumulate_grad_batches"] == 2
    assert told["memory"]["ddp"]["optimizer"] == 2 * told["memory"]["ddp"]["weights"]


def test_a_char_vocabulary_is_read_from_the_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefgh" * 500)
    told = plan(capsys, "--config", str(CONFIGS / "tiny.yaml"), "--data.corpus", str(tmp_path / "text.txt"))
    assert 8 <= told["model"]["vocab_size"] <= 10
    assert list(told["memory"]) == ["one device"]


def test_it_is_read_by_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *GPT2, *MACHINE]) == 0
    said = capsys.readouterr().out
    for words in ("124M parameters", "8 x H100, 989 TFLOP/s each", "2.47B tokens", "largest micro-batch in 80 GiB"):
        assert words in said, said


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--model.d_modle", "3"), "model.d_modle"),
        (("--gpu", "Voodoo2"), "--gpu Voodoo2"),
        (("--gpu", "H100", "--peak", "100"), "--gpu and --peak"),
        (("--mfu", "40"), "--mfu: 40 must be at most 1"),
        (("--memory", "-1"), "--memory: -1 must be above 0"),
        (("--peak", "1", "--gpus", "7", "--data.global_batch_size", "64"), "data.global_batch_size 64"),
        (("--model.n_heads", "7"), "d_model"),
    ],
)
def test_wrong_input_is_one_line(
    flags: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["plan", "--config", str(CONFIGS / "tiny.yaml"), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tinytf: error: ")
    assert said.count("\n") == 1
    assert named in said
