"""A pretrained model gives transformers' logits here, whatever its properties; and goes back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.small_model import save_checkpoint
from tests.weights.folders import LLAMA3, SIZES, write_config, write_tokenizer
from tinytf.export.formats.huggingface import HUGGINGFACE
from tinytf.model import Transformer
from tinytf.training.lightning_module import LanguageModel
from tinytf.weights.base import open_base
from tinytf.weights.checkpoint import LoadedModel, load_model

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

LINEAR = {"rope_type": "linear", "factor": 2.5}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3 tied, heads wider than d_model": ("Qwen3", {"tie_word_embeddings": True}),
    "qwen3 untied, one head for each": ("Qwen3", {"head_dim": 16, "num_key_value_heads": 4}),
    "qwen3 linear": ("Qwen3", {"rope_parameters": {"rope_theta": 5e5, **LINEAR}}),
    "llama tied": ("Llama", {"tie_word_embeddings": True, "head_dim": None}),
    "llama untied, its own head_dim": ("Llama", {"head_dim": 8}),
    "llama 3": ("Llama", {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}, "head_dim": None}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, a window as long as its context": ("Mistral", {"sliding_window": 64}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 1], "pad_token_id": None}),
}


def random_model(kind: str, changes: dict[str, Any]) -> Any:
    """Of transformers, with weights that hide nothing: norms off 1, and no token the same as another."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, "bos_token_id": 0, "eos_token_id": 0, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(1 + 0.3 * torch.randn_like(weight) if weight.dim() == 1 else 0.15 * torch.randn_like(weight))
    return model


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)
    write_tokenizer(folder)


def built(folder: Path) -> Transformer:
    return LanguageModel(base=str(folder)).model.eval()


def largest_difference(model: Any, ours: Transformer) -> float:
    ids = torch.randint(0, 320, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = model(ids).logits, ours(ids)
    assert wanted.std() > 0.5  # Logits that say something.
    return (wanted - found).abs().max().item()


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    model = random_model(*CASES[case])
    save(model, tmp_path)
    assert largest_difference(model, built(tmp_path)) < 1e-4


def test_release_4_writes_the_rotation_in_other_keys(tmp_path: Path) -> None:
    model = random_model("Llama", {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}})
    save(model, tmp_path)
    write_config(tmp_path, rope_parameters=..., rope_theta=5e5, rope_scaling=LLAMA3)
    assert largest_difference(model, built(tmp_path)) < 1e-4
    old = {"type": "linear", "factor": 2.5}
    write_config(tmp_path, rope_scaling=old)
    model = random_model("Llama", {"rope_parameters": {"rope_theta": 5e5, **LINEAR}})
    assert largest_difference(model, built(tmp_path)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_shards(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model("Qwen3", {}).to(dtype)
    save(model, tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    # Not model.float(): its rotary frequencies were rounded too, which are in no file.
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert largest_difference(model, built(tmp_path)) < 1e-4


def test_what_llama_saves_besides_is_passed_over(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = random_model("Llama", {"tie_word_embeddings": True})
    save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, file)
    assert largest_difference(model, built(tmp_path)) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_an_export_has_the_bits_of_the_base(case: str, tmp_path: Path) -> None:
    """Folder -> checkpoint -> folder: the same tensors, and transformers computes the same logits of them."""
    from safetensors.torch import load_file

    model = random_model(*CASES[case])
    save(model, tmp_path / "base")
    base = open_base(str(tmp_path / "base"))
    loaded = LoadedModel(base.build(base.config), base.tokenizer, {"chat_template": base.chat_template})
    HUGGINGFACE.write(load_model(save_checkpoint(tmp_path / "a.ckpt", loaded)), tmp_path / "export", None)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "export"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    ids = torch.randint(0, 320, (1, 60))
    with torch.no_grad():
        assert (again(ids).logits - model(ids).logits).abs().max() < 1e-4


def test_a_padded_vocabulary_stays(tmp_path: Path) -> None:
    save(random_model("Qwen3", {}), tmp_path)
    base = open_base(str(tmp_path))
    assert base.tokenizer.get_vocab_size() == 300
    assert base.config.vocab_size == 320
    assert LanguageModel(base=str(tmp_path), vocab_size=300).config.vocab_size == 320


def test_the_identity_is_the_weights_own(tmp_path: Path) -> None:
    import hashlib

    save(random_model("Qwen3", {}), tmp_path)
    base = open_base(str(tmp_path))
    whole = (tmp_path / "model.safetensors").read_bytes()
    assert base.identity == {
        "name": str(tmp_path), "kind": "qwen3", "revision": None, "sha256": hashlib.sha256(whole).hexdigest(),
    }  # fmt: skip
    assert json.loads(json.dumps(base.identity)) == base.identity
