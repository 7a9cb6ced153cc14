"""The folder that transformers opens with no code of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, processors

from tests.export.small_model import (
    PROPERTIES,
    TEMPLATE,
    TEXT,
    chat_model,
    save_checkpoint,
    small_model,
    tokenizer_of,
)
from tinytf.cli import verify
from tinytf.data.tokenizer import (
    ANY_CHARACTER,
    OLD_ANY_CHARACTER,
    byte_pair_tokenizer,
    character_tokenizer,
    encode,
    tokenizer_from_file,
)
from tinytf.export.formats.card import hub_card
from tinytf.export.formats.huggingface import HUGGINGFACE, require_own_folder
from tinytf.generation.decoding import TransformerEngine, decode
from tinytf.generation.sampling import Sampling
from tinytf.weights.checkpoint import LoadedModel, load_model
from tinytf.weights.huggingface import theirs

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


def test_a_checkpoint_of_the_first_version_is_exported_with_the_pattern_of_every_engine(tmp_path: Path) -> None:
    loaded, _ = folder_of("char", tmp_path)
    path = save_checkpoint(tmp_path / "best.ckpt", loaded)
    content = torch.load(path, weights_only=True)
    content["tinytf"]["tokenizer"] = content["tinytf"]["tokenizer"].replace(r"[\\s\\S]", OLD_ANY_CHARACTER)
    assert OLD_ANY_CHARACTER in content["tinytf"]["tokenizer"]
    torch.save(content, path)
    HUGGINGFACE.write(load_model(path), tmp_path / "again", None)
    written = json.loads((tmp_path / "again" / "tokenizer.json").read_text())
    assert written["pre_tokenizer"]["pattern"] == {"Regex": ANY_CHARACTER}


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


def test_a_weight_that_is_not_the_models_is_named_however_little_it_moves(tmp_path: Path) -> None:
    loaded, path = folder_of("char", tmp_path, tie_embeddings=False)
    weight = loaded.model.state_dict()["lm_head.weight"]
    weight[-1, -1] = torch.nextafter(weight[-1, -1], torch.tensor(9.0))
    assert HUGGINGFACE.validate_artifact(loaded, TEXTS[0], path) == ["weight lm_head.weight is not the model's"]


def test_another_tokenizer_is_caught(tmp_path: Path) -> None:
    loaded, path = folder_of("bpe", tmp_path)
    tokenizer_of("char").save(str(path / "tokenizer.json"))
    assert HUGGINGFACE.validate_artifact(loaded, TEXTS[0], path) == ["AutoTokenizer gives other token ids"]


@pytest.mark.parametrize("kind", ["char", "bpe", "spare"])
def test_prompts_of_unequal_lengths_are_one_batch(kind: str, tmp_path: Path) -> None:
    loaded, path = folder_of("char" if kind == "char" else "bpe", tmp_path)
    if kind == "spare":  # No token ends its texts, and the embedding has more rows than the tokenizer entries.
        endless = Tokenizer.from_str(loaded.tokenizer.to_str().replace("<|endoftext|>", "<|image|>"))
        loaded = LoadedModel(small_model(endless.get_vocab_size() + 3), endless)
        path = tmp_path / "spare"
        HUGGINGFACE.write(loaded, path, None)
        assert HUGGINGFACE.validate_artifact(loaded, TEXTS[0], path) == []
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    prompts = ["Now is the winter", "Now", "of our house\n"]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    rows = [encode(loaded.tokenizer, prompt) for prompt in prompts]
    assert [row[-len(ids) :] for row, ids in zip(inputs["input_ids"].tolist(), rows, strict=True)] == rows
    assert inputs["attention_mask"].sum(1).tolist() == list(map(len, rows))
    written = model.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=None)
    length = inputs["input_ids"].shape[1]
    assert written[:, length:].tolist() == [
        model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=None)[0, -12:].tolist()
        for ids in rows
    ]
    write = transformers.pipeline("text-generation", str(path), max_new_tokens=8, do_sample=False)
    batched = write(prompts, batch_size=2)
    assert batched == [write(prompt) for prompt in prompts]


def test_no_letter_is_taken_for_padding(tmp_path: Path) -> None:
    """It would be left out of every text that transformers shows."""
    tokenizer = character_tokenizer(TEXT, end_of_text=False)
    loaded = LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer)
    HUGGINGFACE.write(loaded, tmp_path / "hf", None)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert (theirs.pad_token, theirs.all_special_tokens) == (None, [])
    assert theirs.decode(theirs(TEXT)["input_ids"], skip_special_tokens=True) == TEXT


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


@pytest.mark.parametrize("changes", PROPERTIES.values(), ids=PROPERTIES)
def test_logits_and_weights_are_the_models_with_every_property(changes: dict[str, Any], tmp_path: Path) -> None:
    loaded, path = folder_of("bpe", tmp_path, **changes)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    tokens = torch.randint(0, loaded.model.config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(tokens).logits - loaded.model(tokens)).abs().max() < 1e-4
    found = model.state_dict()
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(found[theirs(name)], weight), name
    assert model.config.tie_word_embeddings == loaded.model.config.tie_embeddings
    assert require_own_folder(path, loaded) is None


def test_releases_before_5_find_the_rope_scaling_where_they_look(tmp_path: Path) -> None:
    _, path = folder_of("char", tmp_path, **PROPERTIES["llama3"])
    stated = json.loads((path / "config.json").read_text())
    assert stated["rope_scaling"] == {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    assert stated["rope_parameters"] == {**stated["rope_scaling"], "rope_theta": stated["rope_theta"]}


def test_a_width_that_transformers_llama_has_not_is_refused() -> None:
    odd = LoadedModel(small_model(10, d_model=66, head_dim=16, qk_norm=False), tokenizer_of("char"))
    assert "no d_model 66 that n_heads 4 does not divide" in str(HUGGINGFACE.unsupported_reason(odd))


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "huggingface"
    HUGGINGFACE.write(chat_model(), path, None)
    return path


def test_a_chat_template_is_used_by_transformers(chat_folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_folder, local_files_only=True)
    messages = [{"role": "user", "content": "Now is"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nNow is<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "<|im_start|>"
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<pad>"
    assert HUGGINGFACE.validate_artifact(chat_model(), TEXT[:100], chat_folder) == []


def test_what_the_tokenizer_puts_before_a_text_is_its_beginning(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bpe")
    tokenizer.add_special_tokens(["<|begin_of_text|>"])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    loaded = LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer)
    HUGGINGFACE.write(loaded, tmp_path / "hf", None)
    assert HUGGINGFACE.validate_artifact(loaded, TEXTS[0], tmp_path / "hf") == []
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert theirs("Now")["input_ids"][0] == theirs.bos_token_id == begin
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["bos_token_id"] == begin


@pytest.mark.parametrize("kind", [None, "tinytf", "llama"])
def test_what_training_did_not_put_before_a_text_is_not_exported(
    kind: str | None, export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pretrained base has seen what its tokenizer adds; a model that was trained from scratch has not."""
    tokenizer = tokenizer_of("bpe")
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    entry = {} if kind is None else {"base": {"name": "theirs", "kind": kind}}
    loaded = LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer, entry)
    checkpoint = save_checkpoint(tmp_path / "best.ckpt", loaded)
    assert export(checkpoint, "huggingface") == 0
    said = "the tokenizer puts <|endoftext|> around a text, and training did not"
    assert (said in capsys.readouterr().err) == (kind != "llama")
    added = [end] if kind == "llama" else []
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "export" / "huggingface", local_files_only=True)
    assert theirs("Now is")["input_ids"] == [*added, *encode(tokenizer, "Now is")]
    assert tokenizer_from_file(tmp_path / "export" / "tokenizer.json").encode("Now is").ids[: len(added)] == added
    assert verify.run([str(tmp_path / "export"), "--ckpt_path", str(checkpoint)]) == 0
    assert verify.run([str(tmp_path / "export")]) == 0


def test_generation_ends_at_the_end_of_a_turn_and_of_a_text(chat_folder: Path) -> None:
    generation = transformers.GenerationConfig.from_pretrained(chat_folder, local_files_only=True)
    tokenizer = chat_model().tokenizer
    assert generation.eos_token_id == [tokenizer.token_to_id(word) for word in ("<|im_end|>", "<|endoftext|>")]


@pytest.mark.parametrize("template", ["{{", "{{ 9**9**9 }}", "{{ messages[0].content }}"])
def test_a_template_that_does_not_work_goes_along_as_it_is(template: str, tmp_path: Path) -> None:
    loaded = chat_model()
    broken = replace(loaded, entry={**loaded.entry, "chat_template": template})
    HUGGINGFACE.write(broken, tmp_path / "hf", None)
    assert (tmp_path / "hf" / "chat_template.jinja").read_text() == template
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert generation.eos_token_id == [loaded.tokenizer.token_to_id("<|endoftext|>")]


@pytest.mark.parametrize("template", [None, TEMPLATE + " "], ids=["none", "another"])
def test_another_chat_template_is_not_opened(template: str | None, chat_folder: Path) -> None:
    """It is code, in Jinja, which apply_chat_template runs."""
    loaded = chat_model()
    entry = {key: value for key, value in {**loaded.entry, "chat_template": template}.items() if value is not None}
    with pytest.raises(RuntimeError, match=r"chat_template\.jinja is not the model's"):
        require_own_folder(chat_folder, replace(loaded, entry=entry))


def test_templates_in_other_places_are_not_opened(chat_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(chat_folder, tmp_path / "more")
    (tmp_path / "more" / "additional_chat_templates").mkdir()
    with pytest.raises(RuntimeError, match="additional_chat_templates is not a file that tinytf exports"):
        require_own_folder(tmp_path / "more", chat_model())
    shutil.copytree(chat_folder, tmp_path / "config")
    config = tmp_path / "config" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": TEMPLATE}))
    with pytest.raises(RuntimeError, match="its chat_template is not tinytf's"):
        require_own_folder(tmp_path / "config", chat_model())


def test_the_card_names_the_base_model_and_asks_a_chat_model_in_its_template(tmp_path: Path) -> None:
    loaded = chat_model(tie_embeddings=False)
    base = {"name": "hf://owner/name?revision=1a2b", "kind": "llama", "revision": "1a2b", "sha256": "ff"}
    card = hub_card(replace(loaded, entry={**loaded.entry, "base": base}))
    assert "\nbase_model: owner/name\n---\n" in card
    assert "| Base model | `hf://owner/name?revision=1a2b` (kind llama, revision 1a2b, sha256 ff) |" in card
    assert "untied embeddings" in card
    assert "apply_chat_template" in card
    of_a_folder = hub_card(replace(loaded, entry={**loaded.entry, "base": {**base, "name": "models/mine\nx: y"}}))
    assert "base_model" not in of_a_folder
    assert "\nx: y" not in of_a_folder


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
    card = hub_card(LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer))
    assert 'tokenizer("ä", return_tensors' in card
    assert 'tokenizer("Once", return_tensors' in hub_card(folder_of("bpe", tmp_path)[0])


def test_no_default_token_id_stands_in_for_a_missing_one(tmp_path: Path) -> None:
    """Left out, transformers would take id 1 for the beginning of a text and id 2 for its end."""
    from tinytf.data.tokenizer import character_tokenizer

    tokenizer = character_tokenizer(TEXT, end_of_text=False)
    HUGGINGFACE.write(LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer), tmp_path / "hf", None)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["eos_token_id"] is None
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert model.generation_config.eos_token_id is None
