"""The READMEs and the Modelfile of a bundle: every block of Python in them runs, and writes the model's text."""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.export.small_model import TEXT, Exported, chat_model, save_checkpoint, small_model, tokenizer_of
from tinytf.data.tokenizer import character_tokenizer, encode
from tinytf.export.formats import FORMATS
from tinytf.export.formats.card import bundle_card, example_prompt, hub_card
from tinytf.export.formats.gguf.ollama import modelfile
from tinytf.generation.decoding import TransformerEngine, decode
from tinytf.generation.sampling import Sampling
from tinytf.weights.checkpoint import LoadedModel


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", card, re.M | re.S)


def run(block: str, folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        exec(compile(block, str(folder / "README.md"), "exec"), {})
    return printed.getvalue().removesuffix("\n")


def greedy(loaded: LoadedModel, count: int) -> str:
    ids = encode(loaded.tokenizer, example_prompt(loaded.tokenizer))
    steps = decode(TransformerEngine(loaded.model), ids, Sampling(0.0), [0])
    text: str = loaded.tokenizer.decode(ids + torch.cat(list(islice(steps, count))).tolist(), skip_special_tokens=False)
    return text


NEEDS = {"transformers": "huggingface", "onnxruntime": "onnx-kv", "torch": "pt2", "llama_cpp": "gguf-f32"}


def test_every_block_of_a_bundle_runs_and_writes_the_models_text(exported: Exported, loaded: LoadedModel) -> None:
    card = (exported.folder / "README.md").read_text(encoding="utf-8")
    assert {entry["name"] for entry in exported.content["artifacts"]} >= {"pt2", "torchscript"}
    found = blocks(card, "python")
    assert len(found) == len(re.findall(r"^## (?!A browser)", card, re.M))
    ran = 0
    for block in found:
        imported = {node.module for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)}
        imported |= {
            name.name for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import) for name in node.names
        }
        if any(FORMATS[NEEDS[name]].missing("running") for name in imported if name in NEEDS):
            continue
        assert greedy(loaded, 40).startswith(run(block, exported.folder)), block
        ran += 1
    assert ran >= 2


def test_the_block_of_the_hubs_card_runs(exported: Exported, loaded: LoadedModel) -> None:
    if FORMATS["huggingface"].missing("running"):
        pytest.skip("transformers is not installed")
    folder = exported.folder / "huggingface"
    (block,) = blocks((folder / "README.md").read_text(encoding="utf-8"), "python")
    assert greedy(loaded, 40).startswith(run(block, folder))


def test_a_chat_model_is_asked_by_its_template() -> None:
    card = bundle_card(chat_model(), ["huggingface", "gguf-f16"], modelfile=True)
    for block in blocks(card, "python"):
        ast.parse(block)
    assert "create_chat_completion(" in card
    assert "apply_chat_template(" in card
    assert "ollama create trial -f Modelfile" in card


@pytest.mark.parametrize(("text", "endless"), [("a b\n`|", False), ("añ\n", True)])
def test_the_alphabet_is_in_the_card(text: str, endless: bool) -> None:
    tokenizer = character_tokenizer(text, end_of_text=True)
    loaded = LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer)
    for card in (hub_card(loaded), bundle_card(loaded, ["pt2"], modelfile=False)):
        (alphabet,) = blocks(card, "text")
        assert json.loads(alphabet) == "".join(sorted(text))
        assert "| Context | 48 tokens" in card
        assert ("It does not return from" in card) == endless
    assert blocks(hub_card(LoadedModel(small_model(300), tokenizer_of("bpe"))), "text") == []


def test_a_large_alphabet_is_shown_in_part() -> None:
    tokenizer = character_tokenizer(map(chr, range(0x4E00, 0x5500)), end_of_text=False)
    card = hub_card(LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer))
    assert "… and 1,392 more" in card
    assert len(card) < 4000


def test_only_a_model_without_a_first_token_needs_a_flag_for_lm_eval(loaded: LoadedModel) -> None:
    plain = character_tokenizer(TEXT, end_of_text=False)
    card = hub_card(LoadedModel(small_model(plain.get_vocab_size()), plain))
    assert f",prefix_token_id={plain.token_to_id(chr(10))} --tasks" in card
    assert "prefix_token_id" not in hub_card(loaded)


def test_a_modelfile_names_the_file_the_context_and_the_prompt() -> None:
    bpe = LoadedModel(small_model(300, qk_norm=False), tokenizer_of("bpe"))
    assert modelfile(bpe, "model.f16.gguf") == (
        'FROM ./model.f16.gguf\nPARAMETER num_ctx 48\nTEMPLATE """{{ .Prompt }}"""\n'
    )
    assert "digit by digit" in str(modelfile(replace(bpe, model=small_model(300)), "model.f16.gguf"))
    asked = str(modelfile(chat_model(), "model.f16.gguf"))
    assert (
        'TEMPLATE """<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"""'
    ) in asked
    assert 'PARAMETER stop "<|im_end|>"' in asked


def test_a_model_that_ollama_would_read_otherwise_has_no_modelfile(loaded: LoadedModel) -> None:
    """Its engine of qwen3 knows no tokenizer by character; that of llama is llama.cpp."""
    assert modelfile(loaded, "model.f16.gguf") is None
    llama = replace(loaded, model=small_model(loaded.model.config.vocab_size, qk_norm=False))
    assert str(modelfile(llama, "model.f16.gguf")).startswith("FROM ./model.f16.gguf\n")


def test_a_readme_of_the_users_is_left_alone(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    card = checkpoint.parent / "export" / "README.md"
    assert export(checkpoint, "torchscript") == 0
    assert "model.torchscript.pt" in card.read_text(encoding="utf-8")
    card.write_text("# Mine\n", encoding="utf-8")
    assert export(checkpoint, "torchscript") == 0
    assert card.read_text(encoding="utf-8") == "# Mine\n"
    assert "README.md: it was edited, and stays as it is" in capsys.readouterr().err
