"""Read a GGUF file back and compare it with the model, whether llama.cpp is installed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinytf.model import TransformerConfig
from tinytf.run.checkpoint import LoadedModel

Array = npt.NDArray[Any]

BLOCK = 32
"""Values that share one scale in Q8_0."""

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""The parts of a block here and in llama.cpp."""


def architecture(config: TransformerConfig) -> str:
    """The name that llama.cpp knows the model's layout by."""
    return "qwen3" if config.qk_norm else "llama"


def gguf_name(name: str) -> str:
    """llama.cpp's name of a weight. The head has none: without ``output.weight`` it is the embedding."""
    if name == "embed_tokens.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, layer, part = name.split(".", 2)
    return f"blk.{layer}.{NAMES[part.removesuffix('.weight')]}.weight"


def file_problems(loaded: LoadedModel, path: Path, kind: str) -> list[str]:
    """What differs from the model, each in words.

    Args:
        kind: gguf's name of the type of its weights.
    """
    import gguf

    reader = gguf.GGUFReader(str(path))
    return config_problems(loaded.model.config, reader) + tensor_problems(loaded, reader, kind)


def from_llama_cpp(name: str, weight: Array, config: TransformerConfig) -> Array:
    """The way back, row by row rather than by the inverse reshape, so that one mistake is not made twice."""
    heads = {"q_proj": config.n_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
    if config.qk_norm or heads is None:
        return weight
    size = config.head_dim
    order = [head * size + 2 * (row % (size // 2)) + row // (size // 2) for head in range(heads) for row in range(size)]
    back: Array = weight[order]
    return back


def config_problems(config: TransformerConfig, reader: Any) -> list[str]:
    """Compare the config that a file states with the model's."""
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


def tensor_problems(loaded: LoadedModel, reader: Any, kind: str) -> list[str]:
    """Compare every tensor of a file with the model's."""
    import gguf

    config = loaded.model.config
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    problems = []
    for name, weight in loaded.model.state_dict().items():
        tensor = tensors.pop(gguf_name(name), None)
        if tensor is None:
            problems.append(f"tensor {gguf_name(name)} is missing")
            continue
        back = from_llama_cpp(name, gguf.quants.dequantize(tensor.data, tensor.tensor_type), config)
        if not _is_near(back.reshape(weight.shape), weight.numpy(), kind):
            problems.append(f"tensor {tensor.name} is not {name}")
    return problems + [f"tensor {name} is not the model's" for name in tensors]


def _is_near(back: Array, weight: Array, kind: str) -> bool:
    """Equal to what the type stores. For Q8_0: ``|q * s - w| <= step / 2 + 127 * step * 2**-11`` per block of 32, with
    ``step = max|w| / 127``: half a step, and 127 steps of a scale s that is rounded to float16."""
    if kind == "F32" or weight.ndim == 1:
        return bool(np.array_equal(back, weight))
    if kind == "F16":
        return bool(np.array_equal(back, weight.astype(np.float16).astype(np.float32)))
    blocks, exact = (array.reshape(-1, BLOCK) for array in (back, weight))
    step = np.abs(exact).max(axis=1, keepdims=True) / 127
    return bool((np.abs(blocks - exact) <= step * (0.5 + 127 * 2.0**-11) + 1e-7).all())
