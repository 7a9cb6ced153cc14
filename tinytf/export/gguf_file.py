"""GGUF for llama.cpp: arch ``qwen3``, ``llama`` without QK-norm; float32, float16 or 8 bits, tokenizer included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinytf.export.gguf_running import open_llama_cpp
from tinytf.export.gguf_tokenizer import add_tokenizer, refuse_tokenizer, tokenizer_problems
from tinytf.export.quiet import quiet
from tinytf.export.runner import Runner
from tinytf.export.subject import Subject
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


@dataclass(frozen=True)
class Gguf:
    """One of the three types; ``kind`` is the name of gguf's own type."""

    kind: str

    def write(self, subject: Subject, path: Path, base: Path | None) -> None:
        """Write weights, shape and tokenizer into one GGUF file."""
        import gguf

        config = subject.model.config
        with quiet():
            writer = gguf.GGUFWriter(str(path), architecture(config))
        _add_shape(writer, config, subject.name, gguf.LlamaFileType[_FILE_TYPES[self.kind]])
        add_tokenizer(writer, subject.tokenizer, config.vocab_size)
        for name, weight in subject.model.state_dict().items():
            array = to_llama_cpp(name, weight.numpy(), config)
            # Norms stay in float32, as llama.cpp's own converter leaves them; they are a thousandth of the file.
            kind = gguf.GGMLQuantizationType[self.kind if array.ndim > 1 else "F32"]
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
        with quiet():
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()

    def open_runner(self, path: Path, threads: int) -> Runner:
        """The file in llama.cpp."""
        return open_llama_cpp(path, threads)

    def refusal(self, subject: Subject) -> str | None:
        """The property of the model that GGUF cannot express, or None."""
        config = subject.model.config
        if self.kind == "Q8_0" and (config.d_model % BLOCK or config.ff_dim % BLOCK):
            name, size = ("d_model", config.d_model) if config.d_model % BLOCK else ("d_ff", config.ff_dim)
            return f"its blocks are of {BLOCK} values, which do not divide {name} {size}"
        return refuse_tokenizer(subject.tokenizer)

    def problems(self, subject: Subject, text: str, path: Path) -> list[str]:
        """Tensors that differ from the model's after the way back, and texts that llama.cpp tokenises otherwise."""
        return tensor_problems(subject, path, self.kind) + tokenizer_problems(subject.tokenizer, text, path)


_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}

F32 = Gguf("F32")
F16 = Gguf("F16")
Q8_0 = Gguf("Q8_0")


def architecture(config: TransformerConfig) -> str:
    """The name that llama.cpp knows the model's layout by."""
    return "qwen3" if config.qk_norm else "llama"


def _add_shape(writer: Any, config: TransformerConfig, name: str, file_type: int) -> None:
    import gguf

    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ff_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


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


def from_llama_cpp(name: str, weight: Array, config: TransformerConfig) -> Array:
    """The way back, row by row rather than by the inverse reshape, so that one mistake is not made twice."""
    heads = {"q_proj": config.n_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
    if config.qk_norm or heads is None:
        return weight
    size = config.head_dim
    order = [head * size + 2 * (row % (size // 2)) + row // (size // 2) for head in range(heads) for row in range(size)]
    back: Array = weight[order]
    return back


def tensor_problems(subject: Subject, path: Path, kind: str) -> list[str]:
    """Compare every tensor of a file with the model's."""
    import gguf

    config = subject.model.config
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
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
