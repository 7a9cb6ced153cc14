"""Small pretrained models as Hugging Face folders, made in a moment and without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.export.small_model import TEXT, small_model
from tinytf.data.tokenizer import byte_pair_tokenizer
from tinytf.model import Transformer

SIZES = {
    "vocab_size": 320,  # Padded: the tokenizer has 300.
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def write_tokenizer(folder: Path, entries: int = 300) -> None:
    byte_pair_tokenizer(iter([TEXT]), entries).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<|endoftext|>"}))


def write_config(folder: Path, **changes: Any) -> None:
    """``config.json`` as it is there, or Qwen3's, with changes; a key that becomes ... is left out."""
    path = folder / "config.json"
    qwen = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True, **SIZES}
    content = {**(json.loads(path.read_text()) if path.exists() else qwen), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def write_folder(folder: Path, shards: int = 1, dtype: torch.dtype = torch.float32) -> Transformer:
    """A tied Qwen3 in a folder, and the same model."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    write_tokenizer(folder)
    write_config(folder)
    model = small_model(320, head_dim=32, d_ff=96, max_seq_len=64, norm_eps=1e-6)
    weights = {f"model.{name}": value.to(dtype) for name, value in model.state_dict().items()}
    names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    parts = {name: {key: weights[key] for key in sorted(weights)[n::shards]} for n, name in enumerate(names)}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return model
    for name, part in parts.items():
        save_file(part, folder / name, metadata={"format": "pt"})
    table = {key: name for name, part in parts.items() for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return model
