"""GGUF for llama.cpp: arch ``qwen3``, ``llama`` without QK-norm; float32, float16 or 8 bits, tokenizer included.

Byte-level BPE is written as llama.cpp's ``gpt2``, characters as its ``rwkv``: that takes the longest entry that fits,
which for entries of one character is that character, and it alone assumes no end-of-text id. With ``gpt2`` and
``llama``, a file that names none ends its texts at token 11 or 2, here a letter.

Every file is read back and compared with the model, whether llama.cpp is installed or not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinytf.data.tokenizer import end_of_text_id, is_by_character, is_gpt2_like
from tinytf.export.formats import Writer
from tinytf.export.formats.gguf.llama_cpp import open_llama_cpp, tokenizer_problems
from tinytf.export.parity.runner import Runner, quiet
from tinytf.model import TransformerConfig
from tinytf.weights.checkpoint import LoadedModel

Array = npt.NDArray[Any]

FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}

ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
"""How ``rwkv`` entries are written; other characters stand for themselves."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

OTHER_KEYS = {f"general.{name}" for name in ("architecture", "name", "file_type", "quantization_version")}
OTHER_KEYS |= {f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "merges")}
OTHER_KEYS |= {f"tokenizer.ggml.{name}" for name in ("bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token")}
"""What a file states besides the config."""

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
class Gguf(Writer):
    """One of the three types; ``kind`` is the name of gguf's own type."""

    kind: str

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        config = loaded.model.config
        for name, size in (("d_model", config.d_model), ("d_ff", config.ff_dim)):
            if self.kind == "Q8_0" and size % BLOCK:
                return f"its blocks are of {BLOCK} values, which do not divide {name} {size}"
        return unsupported_tokenizer(loaded.tokenizer)

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        import gguf

        config = loaded.model.config
        with quiet():
            writer = gguf.GGUFWriter(str(path), architecture(config))
        writer.add_name(loaded.name)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[self.kind]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for name, value in stated_config(config).items():
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{architecture(config)}.{name}", value)
        _add_tokenizer(writer, loaded.tokenizer, config.vocab_size)
        for name, weight in loaded.model.state_dict().items():
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
        return open_llama_cpp(path, threads)

    def validate_artifact(self, loaded: LoadedModel, text: str, path: Path) -> list[str]:
        return file_problems(loaded, path, self.kind) + tokenizer_problems(loaded.tokenizer, text, path)


F32 = Gguf("F32")
F16 = Gguf("F16")
Q8_0 = Gguf("Q8_0")


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


def stated_config(config: TransformerConfig) -> dict[str, int | float]:
    """The config as a file states it, in llama.cpp's words; its architecture stands before each name."""
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.max_seq_len,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.ff_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "rope.dimension_count": config.head_size,
        "rope.freq_base": float(config.rope_theta),
        "attention.layer_norm_rms_epsilon": config.norm_eps,
    }


def to_llama_cpp(name: str, weight: Array, config: TransformerConfig) -> Array:
    """A weight as llama.cpp's architecture wants it.

    Its ``llama`` rotates neighboring pairs, so that the rows of each head are interleaved; ``qwen3`` rotates halves.
    """
    heads = {"q_proj": config.n_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
    if config.qk_norm or heads is None:
        return weight
    # Without it a file loads and runs, and agrees with the model on 0.185 of the likeliest tokens.
    halves = weight.reshape(heads, 2, config.head_size // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def from_llama_cpp(name: str, weight: Array, config: TransformerConfig) -> Array:
    """The way back, row by row rather than by the inverse reshape, so that one mistake is not made twice."""
    heads = {"q_proj": config.n_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
    if config.qk_norm or heads is None:
        return weight
    size = config.head_size
    order = [head * size + 2 * (row % (size // 2)) + row // (size // 2) for head in range(heads) for row in range(size)]
    back: Array = weight[order]
    return back


def unsupported_tokenizer(tokenizer: Tokenizer) -> str | None:
    """What of a tokenizer llama.cpp cannot express, or None."""
    if is_by_character(tokenizer):
        return None
    if is_gpt2_like(tokenizer):
        if end_of_text_id(tokenizer) is None:
            return "its tokenizer has no end-of-text token, and llama.cpp would take token 11 for it"
        return None
    return "its tokenizer is neither by character nor byte-level BPE with GPT-2's word pattern"


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Write tokens in the order of their ids, their types, and what llama.cpp needs to use them the same way."""
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    by_id = {id: token for token, id in tokenizer.get_vocab(with_added_tokens=True).items()}
    # The embedding may have more rows than the tokenizer has entries.
    tokens = [by_id.get(id, f"<unused{id}>") for id in range(vocab_size)]
    kinds = {None: NORMAL, False: USER_DEFINED, True: CONTROL}
    types = [kinds[added.get(token)] if id in by_id else UNUSED for id, token in enumerate(tokens)]
    if is_by_character(tokenizer):
        writer.add_tokenizer_model("rwkv")
        writer.add_token_list([token.translate(ESCAPES) for token in tokens])
    else:
        writer.add_tokenizer_model("gpt2")
        # "default" gives other ids to 198 of 203 texts, "llama-bpe" to all.
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        # llama.cpp refuses a file whose list of merges is empty.
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges] or [""])
    writer.add_token_types(types)
    end = end_of_text_id(tokenizer)
    if end is not None:
        writer.add_bos_token_id(end)
        writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def file_problems(loaded: LoadedModel, path: Path, kind: str) -> list[str]:
    """What a file states or holds that is not the model's, each in words; ``kind`` is gguf's type of its weights.

    Raises:
        RuntimeError: if it states what no file of tinytf does: llama-cpp-python compiles a chat template as it loads.
    """
    import gguf

    reader = gguf.GGUFReader(str(path))
    ours = {f"{architecture(loaded.model.config)}.{name}" for name in stated_config(loaded.model.config)} | OTHER_KEYS
    strangers = [name for name in reader.fields if name not in ours and not name.startswith("GGUF.")]
    if strangers:
        raise RuntimeError(f"it states {strangers[0]}, which no file of tinytf does: it is not opened")
    return config_problems(loaded.model.config, reader) + tensor_problems(loaded, reader, kind)


def config_problems(config: TransformerConfig, reader: Any) -> list[str]:
    """Compare the config that a file states with the model's."""
    wanted = stated_config(config)
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
    """Equal to what the type stores.

    For Q8_0, ``|q * s - w| <= step / 2 + 127 * (step * 2**-11 + 2**-25)`` per block of 32, with
    ``step = max|w| / 127``: half a step, and 127 times the rounding of a scale s to float16, 2**-25 below 6e-5.
    The output projections start at zero: after a few steps their scales are that small.
    """
    if kind == "F32" or weight.ndim == 1:
        return bool(np.array_equal(back, weight))
    if kind == "F16":
        return bool(np.array_equal(back, weight.astype(np.float16).astype(np.float32)))
    blocks, exact = (array.reshape(-1, BLOCK) for array in (back, weight))
    step = np.abs(exact).max(axis=1, keepdims=True) / 127
    return bool((np.abs(blocks - exact) <= step * (0.5 + 127 * 2.0**-11) + 127 * 2.0**-25).all())
