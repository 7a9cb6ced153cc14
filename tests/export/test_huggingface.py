"""The folder that transformers opens with no code of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.export.small_model import TEXT, save_checkpoint, small_model, tokenizer_of
from tinytf.data.tokenizer import byte_pair_tokenizer, character_tokenizer, encode, tokenizer_from_file
from tinytf.export.formats.huggingface import HUGGINGFACE, model_card
from tinytf.generation.decoding import TransformerEngine, decode
from tinytf.generation.sampling import Sampling
from tinytf.weights.checkpoint import LoadedModel, load_model

transformers = pytest.importorskip("transformers")

TEXTS = [TEXT[:200], "  two  spaces\n\n\tand a tab ", "n't 've it's", "—", "aaaaaaaa"]


def folder_of(kind: str, tmp_path: Path, **changes: object) -> tuple[LoadedModel, Path]:
    tokenizer = tokenizer_of(kind)
    loaded = LoadedModel(
        small_model(tokenizer.get_vocab_size(), **changes), tokenizer, {"config": {"name": "trial"}}, 7
    )
    path = tmp_path / "huggingface"
    HUGGINGFACE.write(loaded, path, None)
    return loaded, path


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_token_ids_are_equal_and_texts_come_back(kind: str, tmp_path: Path) -> None:
    loaded, path = folder_of(kind, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    for text in TEXTS if kind == "bpe" else TEXTS[:1]:
        ids = tokenizer(text)["input_ids"]
        assert ids == encode(loaded.tokenizer, text)
        assert tokenizer.decode(ids) == text
    assert HUGGINGFACE.validate_artifact(loaded, TEXTS[0], path) == []


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_literal_end_of_text_is_text(kind: str, tmp_path: Path) -> None:
    text = "Now<|endoftext|>is"
    tokenizer = byte_pair_tokenizer(iter([TEXT]), 300) if kind == "bpe" else character_tokenizer(text, end_of_text=True)
    loaded = LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer)
    HUGGINGFACE.write(loaded, tmp_path / "huggingface", None)
    assert len(encode(tokenizer, text)) > 5
    assert HUGGINGFACE.validate_artifact(loaded, text, tmp_path / "huggingface") == []


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_loaded_tokenizer_takes_a_literal_end_of_text_for_text_at_once(kind: str, tmp_path: Path) -> None:
    """Before its first use as after: both the tokenizer of `load_model` and that of the bundle."""
    text = "Now<|endoftext|>is"
    tokenizer = byte_pair_tokenizer(iter([TEXT]), 300) if kind == "bpe" else character_tokenizer(text, end_of_text=True)
    small = LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer)
    loaded = load_model(save_checkpoint(tmp_path / "best.ckpt", small))
    before = loaded.tokenizer.encode(text, add_special_tokens=False).ids
    assert before == encode(loaded.tokenizer, text) == loaded.tokenizer.encode(text, add_special_tokens=False).ids
    HUGGINGFACE.write(loaded, tmp_path / "huggingface", None)
    assert tokenizer_from_file(tmp_path / "huggingface" / "tokenizer.json").encode(text).ids == before


def test_another_tokenizer_is_caught(tmp_path: Path) -> None:
    loaded, path = folder_of("bpe", tmp_path)
    tokenizer_of("char").save(str(path / "tokenizer.json"))
    assert HUGGINGFACE.validate_artifact(loaded, TEXTS[0], path) == ["AutoTokenizer gives other token ids"]


@pytest.mark.parametrize("qk_norm", [True, False], ids=["Qwen3", "Llama"])
def test_greedy_text_is_equal(qk_norm: bool, tmp_path: Path) -> None:
    loaded, path = folder_of("bpe", tmp_path, qk_norm=qk_norm)
    prompt = encode(loaded.tokenizer, "Now is")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    assert type(model).__name__.startswith("Qwen3" if qk_norm else "Llama")
    new = 48 - len(prompt)
    written = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=new, eos_token_id=None)
    steps = decode(TransformerEngine(loaded.model), prompt, Sampling(0.0), [0])
    assert written[0, len(prompt) :].tolist() == [int(next(steps)) for _ in range(new)]


def test_weights_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    """transformers fills what is missing with random numbers, and only tells."""
    from safetensors.torch import load_file, save_file

    _, path = folder_of("char", tmp_path)
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="up_proj"):
        HUGGINGFACE.open_runner(path, 1)


def test_it_opens_in_a_python_without_tinytf(tmp_path: Path) -> None:
    _, path = folder_of("char", tmp_path)
    code = (
        "import sys; sys.modules['tinytf'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model, tokenizer = AutoModelForCausalLM.from_pretrained({str(path)!r}), "
        f"AutoTokenizer.from_pretrained({str(path)!r})\n"
        "print(len(tokenizer.decode(model.generate(**tokenizer('Now', return_tensors='pt'), max_new_tokens=5)[0])))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8


def test_the_card_says_what_the_model_is(tmp_path: Path) -> None:
    loaded, path = folder_of("char", tmp_path)
    card = (path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert f"{loaded.model.config.parameter_count:,}" in card
    assert "| Steps | 7 |" in card


def test_the_cards_example_can_be_encoded(tmp_path: Path) -> None:
    tokenizer = character_tokenizer("äöü\n", end_of_text=False)
    card = model_card(LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer))
    assert 'tokenizer("ä", return_tensors' in card
    assert 'tokenizer("Once", return_tensors' in model_card(folder_of("bpe", tmp_path)[0])


def test_no_default_token_id_stands_in_for_a_missing_one(tmp_path: Path) -> None:
    """Left out, transformers would take id 1 for the beginning of a text and id 2 for its end."""
    from tinytf.data.tokenizer import character_tokenizer

    tokenizer = character_tokenizer(TEXT, end_of_text=False)
    HUGGINGFACE.write(LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer), tmp_path / "hf", None)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["eos_token_id"] is None
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert model.generation_config.eos_token_id is None
