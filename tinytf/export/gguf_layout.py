"""llama.cpp's names for this architecture, and the order of its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tinytf.model import TransformerConfig

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


def to_llama_cpp(name: str, weight: Array, config: TransformerConfig) -> Array:
    """A weight as llama.cpp's architecture wants it.

    Its ``llama`` rotates neighbouring pairs, so that the rows of each head are interleaved; ``qwen3`` rotates halves.
    """
    heads = {"q_proj": config.n_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
    if config.qk_norm or heads is None:
        return weight
    halves = weight.reshape(heads, 2, config.head_dim // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
