"""`tinytf.load`: a model that speaks from Python as it does on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tinytf
from tests.cli.tiny_checkpoint import write_checkpoint
from tinytf.cli import generate
from tinytf.errors import UserError
from tinytf.generation.sampling import Sampling


@pytest.fixture(scope="module", name="folder")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_checkpoint(folder / "char.ckpt", "char")
    write_checkpoint(folder / "bpe.ckpt", "bpe", max_seq_len=64)
    return folder


@pytest.mark.parametrize("kind", ["char", "bpe"])
@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "It is", "seed": 5},
        {"prompt": "", "max_new_tokens": 12, "temperature": 0.0},
        {"prompt": "ROMEO:", "max_new_tokens": 90, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "temperature": 1.1},
    ],
)
@pytest.mark.filterwarnings("ignore:the text is past max_seq_len")
def test_it_says_what_the_command_prints(
    folder: Path, kind: str, settings: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = folder / f"{kind}.ckpt"
    model = tinytf.load(checkpoint, device="cpu")
    before = torch.random.get_rng_state()
    said = model.generate(**settings)  # type: ignore[arg-type]
    assert torch.equal(torch.random.get_rng_state(), before)
    flags = [f"--{key}={value}" for key, value in settings.items()]
    threads = torch.get_num_threads()
    assert generate.run(["--ckpt_path", str(checkpoint), "--device=cpu", f"--threads={threads}", *flags]) == 0
    assert capfd.readouterr().out == said + "\n"


def test_stop_texts_end_it_as_they_end_the_command(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tinytf.load(folder / "char.ckpt", device="cpu")
    whole = model.generate("It is", max_new_tokens=25)
    stop = whole[15:18]
    flags = ["--device=cpu", "--prompt=It is", "--max_new_tokens=25", f"--stop={stop}", "--json"]
    generate.run(["--ckpt_path", str(folder / "char.ckpt"), *flags])
    assert model.generate("It is", max_new_tokens=25, stop=[stop])[5:] == json.loads(capfd.readouterr().out)["text"]


def test_the_pieces_of_a_stream_join_to_the_text(folder: Path) -> None:
    model = tinytf.load(folder / "bpe.ckpt", device="cpu")
    pieces = list(model.stream("It is", Sampling(temperature=0.8), max_new_tokens=30, seed=3))
    assert len(pieces) > 1
    assert "It is" + "".join(pieces) == model.generate("It is", max_new_tokens=30, seed=3)


def test_best_and_last_are_those_of_the_newest_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "checkpoints" / "toy" / "version_0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("name: toy\n")
    write_checkpoint(run / "step-0000007-val_loss-1.0000.ckpt", step=7)
    write_checkpoint(run / "step-0000009.ckpt", step=9)
    monkeypatch.chdir(tmp_path)
    assert tinytf.load("best").step == 7
    assert tinytf.load("last").step == 9
    assert tinytf.load("last", name="toy", root=tmp_path / "checkpoints").step == 9
    assert "after 9 steps" in repr(tinytf.load("last"))


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ("no.ckpt", {}, "no.ckpt: there is no such file"),
        (Path("best"), {}, "best: there is no such file"),
        ("last", {"name": "other"}, "last: there is no run in checkpoints/other"),
        ("char.ckpt", {"device": "tpu"}, "device tpu: expected auto, cuda, mps, cpu"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    folder: Path, given: str | Path, settings: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as caught:
        tinytf.load(given, **settings)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"stop": [""]}, "stop holds an empty text"),
    ],
)
def test_a_setting_out_of_range_is_named(folder: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tinytf.load(folder / "char.ckpt", device="cpu").generate("It is", **settings)  # type: ignore[arg-type]


def test_a_text_past_the_context_is_said(folder: Path) -> None:
    with pytest.warns(UserWarning, match="max_seq_len 32"):
        tinytf.load(folder / "char.ckpt", device="cpu").generate("It is", max_new_tokens=40)


def test_importing_tinytf_imports_nothing_heavy(folder: Path) -> None:
    code = """if True:
        import sys, tinytf
        assert not {"torch", "numpy", "tokenizers", "yaml"} & set(sys.modules)
        tinytf.load(sys.argv[1], device="cpu").generate("It is", max_new_tokens=2)
        assert "lightning" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code, folder / "char.ckpt"], check=True)


@pytest.mark.parametrize("stated", [5, None, -1, 10**9, "5"])
def test_an_empty_prompt_starts_from_a_token_that_training_has_seen(
    stated: object, folder: Path, tmp_path: Path
) -> None:
    content = torch.load(folder / "bpe.ckpt", weights_only=True)
    content["tinytf"]["data"]["start_token"] = stated
    torch.save(content, tmp_path / "a.ckpt")
    model = tinytf.load(tmp_path / "a.ckpt", device="cpu")
    assert model.encode_prompt("") == [5 if stated == 5 else model.tokenizer.token_to_id("<|endoftext|>")]


@pytest.mark.parametrize("temperature", [1e-320, 1e-7, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_would_overflow_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature is"):
        Sampling(temperature=temperature)
