"""`tinytf plan`: the numbers of a config, and refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.tiny_checkpoint import write_checkpoint
from tinytf.cli.config.parser import Description
from tinytf.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
GPT2 = ("--config", str(CONFIGS / "recipes" / "gpt2.yaml"))
MACHINE = ("--gpus", "8", "--gpu", "H100", "--memory", "80")


def plan(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["plan", *flags, "--json"]) == 0
    numbers: dict[str, Any] = json.loads(capsys.readouterr().out)
    return numbers


def test_the_numbers_of_gpt2(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = plan(capsys, *GPT2, *MACHINE, "--mfu", "0.5")
    parameters = numbers["model"]["parameters"]
    assert parameters == 50257 * 768 + 12 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768 + 2 * 64) + 768
    assert numbers["model"]["flops_per_token"] == 6 * parameters + 12 * 12 * 768 * 1024
    assert numbers["precision"] == "bf16-mixed"  # Of the GPU named, whatever this machine multiplies.
    assert numbers["tokens_per_second"] == pytest.approx(8 * 989e12 * 0.5 / numbers["model"]["flops_per_token"])
    best = numbers["optimal_run"]
    assert best["tokens"] == 20 * parameters
    assert best["seconds"] == pytest.approx(best["tokens"] / numbers["tokens_per_second"])
    assert numbers["this_run"]["windows_per_step"] == 32 * 8 * 8
    assert set(numbers["memory"]) == {"ddp", "fsdp2"}
    assert numbers["memory"]["ddp"]["weights"] == 4 * parameters
    assert numbers["memory"]["fsdp2"]["weights"] == 4 * parameters / 8
    assert numbers["memory"]["fsdp2"]["largest_micro_batch"] > numbers["memory"]["ddp"]["largest_micro_batch"] > 0


def test_flags_and_overlays_count_as_in_fit(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--model.n_layers", "2", "--model.optimizer", "torch.optim.AdamW", "--data.global_batch_size", "512")
    numbers = plan(capsys, *GPT2, *MACHINE, *flags, "--trainer.accumulate_grad_batches", "null", "--vocab_size", "1000")
    assert numbers["model"]["n_layers"] == 2
    assert numbers["model"]["vocab_size"] == 1000
    assert numbers["this_run"]["accumulate_grad_batches"] == 2
    assert numbers["memory"]["ddp"]["optimizer"] == 2 * numbers["memory"]["ddp"]["weights"]


def test_a_char_vocabulary_is_read_from_the_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefgh" * 500)
    numbers = plan(capsys, "--config", str(CONFIGS / "tiny.yaml"), "--data.corpus", str(tmp_path / "text.txt"))
    assert 8 <= numbers["model"]["vocab_size"] <= 10
    assert list(numbers["memory"]) == ["one device"]


def test_how_often_the_text_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("abcdefgh" * 5000)
    flags = ("--tflops", "1", "--data.corpus", str(corpus), "--trainer.max_steps", "30")
    tiny = ("--config", str(CONFIGS / "tiny.yaml"), *flags)
    read = {"tokens": 36_000, "estimated": False, "windows": 36_000 / 64, "examples": None,
            "readings": pytest.approx(30 * 8 * 64 / 36_000)}  # fmt: skip
    assert plan(capsys, *tiny)["text"] == read
    bpe = ("--data.tokenizer", "bpe", "--trainer.max_steps", "3000")
    read = {**read, "tokens": 9_000, "estimated": True, "windows": 9_000 / 64, "readings": 3000 * 512 / 9000}
    assert plan(capsys, *tiny, *bpe)["text"] == read
    assert plan(capsys, *tiny, "--vocab_size", "9")["text"]["tokens"] is None
    assert plan(capsys, *tiny, "--data.corpus", "elsewhere.txt", "--data.tokenizer", "bpe")["text"]["tokens"] is None
    assert main(["plan", *tiny, *bpe]) == 0
    shown = capsys.readouterr().out
    assert "9,000 tokens of training text, read 171 times, at about 4 bytes per token" in shown
    assert "warning: the training text is read 171 times: after about 16" in shown
    assert "trainer.max_steps 281" in shown
    assert main(["plan", *tiny]) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_checkpoint_that_does_not_say_how_much_text_it_had(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    described = Description("fit", [])
    config = described.plain(described.parser.get_defaults())
    config["model"].update(d_model=32, n_heads=2, n_layers=2, max_seq_len=32)
    config["data"].update(corpus="python-docs", seq_len=32)
    content = torch.load(write_checkpoint(tmp_path / "a.ckpt", config=config), weights_only=True)
    for split_tokens, tokens in ((None, None), ([3], None), ({"train": "x"}, None), ({"train": 90}, 90)):
        content["tinytf"]["data"]["split_tokens"] = split_tokens
        torch.save(content, tmp_path / "a.ckpt")
        assert plan(capsys, "--ckpt_path", str(tmp_path / "a.ckpt"), "--tflops", "1")["text"]["tokens"] == tokens


def test_a_geforce_is_known_by_its_whole_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(capsys, *GPT2, "--gpu", "rtx 4090", "--vocab_size", "99")["machine"]["peak_flops"] == 165.15072e12
    for name, says in (("RTX 4090 Laptop GPU", "its maker's choice"), ("RTX 4091", "the nearest are RTX 4090")):
        assert main(["plan", *GPT2, "--gpu", name]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert "give it as --tflops" in said


def test_the_memory_is_a_list_of_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    memory = plan(capsys, *GPT2, *MACHINE)["memory"]["fsdp2"]
    saved = [row for row in memory["rows"] if row["part"] == "activations"]
    assert sum(row["bytes"] for row in saved) == memory["activations"]
    width = 32 * 1024 * 12 * 768
    assert {row["tensor"]: row["bytes"] for row in saved}["q_proj: input cast"] == 2 * width
    assert main(["plan", *GPT2, *MACHINE, "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "tensors per device, fsdp2" in lines
    cells = next(line.split() for line in lines if "input_layernorm: input" in line)
    assert cells == ["activations", "input_layernorm:", "input", f"{width:,}", f"{4 * width:,}", "RMSNorm"]


def test_it_is_read_by_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *GPT2, *MACHINE]) == 0
    output = capsys.readouterr().out
    for words in ("124M parameters", "8 x H100, 989 TFLOP/s each", "2.47B tokens", "largest micro-batch in 80 GiB"):
        assert words in output, output


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--model.d_modle", "3"), "model.d_modle"),
        (("--gpu", "Voodoo2"), "--gpu Voodoo2"),
        (("--gpu", "H100", "--tflops", "100"), "--gpu and --tflops"),
        (("--mfu", "40"), "--mfu: 40 must be at most 1"),
        (("--memory", "-1"), "--memory: -1 must be above 0"),
        (("--memory", "1e300"), "--memory: 1e300 must be from 1e-9 to 1e9"),
        (("--tflops", "5e-324"), "--tflops: 5e-324 must be from 1e-9"),
        (("--tflops", "1", "--gpus", "7", "--data.global_batch_size", "64"), "data.global_batch_size 64"),
        (("--model.n_heads", "7"), "d_model"),
    ],
)
def test_wrong_input_is_one_line(
    flags: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["plan", "--config", str(CONFIGS / "tiny.yaml"), *flags]) == 2
    output = capsys.readouterr().err
    assert output.startswith("tinytf: error: ")
    assert output.count("\n") == 1
    assert named in output
