"""A GGUF file read back and compared with the model, whether llama.cpp is installed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tinytf.export.gguf_layout import BLOCK, Array, architecture, gguf_name
from tinytf.export.subject import Subject
from tinytf.model import TransformerConfig


def file_problems(subject: Subject, path: Path, kind: str) -> list[str]:
    """What differs from the model, each in words.

    Args:
        kind: gguf's name of the type of its weights.
    """
    import gguf

    reader = gguf.GGUFReader(str(path))
    return shape_problems(subject.model.config, reader) + tensor_problems(subject, reader, kind)


def from_llama_cpp(name: str, weight: Array, config: TransformerConfig) -> Array:
    """The way back, row by row rather than by the inverse reshape, so that one mistake is not made twice."""
    heads = {"q_proj": config.n_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
    if config.qk_norm or heads is None:
        return weight
    size = config.head_dim
    order = [head * size + 2 * (row % (size // 2)) + row // (size // 2) for head in range(heads) for row in range(size)]
    back: Array = weight[order]
    return back


def shape_problems(config: TransformerConfig, reader: Any) -> list[str]:
    """Compare what a file states of the model's shape with what the model is."""
    wanted = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_seq_len,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.ff_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    fields = {name: reader.get_field(f"{architecture(config)}.{name}") for name in wanted}
    stated = {name: field and field.contents() for name, field in fields.items()}
    # Fractions are kept in float32.
    wrong = [name for name, value in wanted.items() if stated[name] is None or np.float32(value) != stated[name]]
    return [f"{name} is {stated[name]} in the file and {wanted[name]} in the model" for name in wrong]


def tensor_problems(subject: Subject, reader: Any, kind: str) -> list[str]:
    """Compare every tensor of a file with the model's."""
    import gguf

    config = subject.model.config
    held = {tensor.name: tensor for tensor in reader.tensors}
    found = []
    for name, weight in subject.model.state_dict().items():
        tensor = held.pop(gguf_name(name), None)
        if tensor is None:
            found.append(f"tensor {gguf_name(name)} is missing")
            continue
        back = from_llama_cpp(name, gguf.quants.dequantize(tensor.data, tensor.tensor_type), config)
        if not _is_near(back.reshape(weight.shape), weight.numpy(), kind):
            found.append(f"tensor {tensor.name} is not {name}")
    return found + [f"tensor {name} is not the model's" for name in held]


def _is_near(back: Array, weight: Array, kind: str) -> bool:
    if kind == "F32" or weight.ndim == 1:
        return bool(np.array_equal(back, weight))
    if kind == "F16":
        return bool(np.array_equal(back, weight.astype(np.float16).astype(np.float32)))
    blocks, exact = (array.reshape(-1, BLOCK) for array in (back, weight))
    # Half a step of the block's scale, and the scale's own rounding to float16 over 127 steps.
    step = np.abs(exact).max(axis=1, keepdims=True) / 127
    return bool((np.abs(blocks - exact) <= step * (0.5 + 127 * 2.0**-11) + 1e-7).all())
