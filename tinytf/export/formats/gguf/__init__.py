"""GGUF for llama.cpp: arch ``qwen3``, ``llama`` without QK-norm; float32, float16 or 8 bits, tokenizer included.

Byte-level BPE is written as llama.cpp's ``gpt2``, characters as its ``rwkv``: that takes the longest entry that fits,
which for entries of one character is that character, and it alone assumes no end-of-text id. With ``gpt2`` and
``llama``, a file that names none ends its texts at token 11 or 2, here a letter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tinytf.data.tokenizer import end_of_text_id, is_by_character, is_gpt2_like
from tinytf.export.formats.gguf.llama_cpp import open_llama_cpp, tokenizer_problems
from tinytf.export.formats.gguf.read_back import BLOCK, Array, architecture, file_problems, gguf_name
from tinytf.export.parity.runner import Runner, quiet
from tinytf.model import TransformerConfig
from tinytf.run.checkpoint import LoadedModel

FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}

ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
"""How ``rwkv`` entries are written; other characters stand for themselves."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


@dataclass(frozen=True)
class Gguf:
    """One of the three types; ``kind`` is the name of gguf's own type."""

    kind: str

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        """The property of the model that GGUF cannot express, or None."""
        config = loaded.model.config
        if self.kind == "Q8_0" and (config.d_model % BLOCK or config.ff_dim % BLOCK):
            name, size = ("d_model", config.d_model) if config.d_model % BLOCK else ("d_ff", config.ff_dim)
            return f"its blocks are of {BLOCK} values, which do not divide {name} {size}"
        return unsupported_tokenizer(loaded.tokenizer)

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        """Write weights, config and tokenizer into one GGUF file."""
        import gguf

        config = loaded.model.config
        with quiet():
            writer = gguf.GGUFWriter(str(path), architecture(config))
        _add_config(writer, config, loaded.name, gguf.LlamaFileType[FILE_TYPES[self.kind]])
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
        """The file in llama.cpp."""
        return open_llama_cpp(path, threads)

    def validate_artifact(self, loaded: LoadedModel, text: str, path: Path) -> list[str]:
        """What read back differs from the model, and texts that llama.cpp tokenizes otherwise."""
        return file_problems(loaded, path, self.kind) + tokenizer_problems(loaded.tokenizer, text, path)


F32 = Gguf("F32")
F16 = Gguf("F16")
Q8_0 = Gguf("Q8_0")


def to_llama_cpp(name: str, weight: Array, config: TransformerConfig) -> Array:
    """A weight as llama.cpp's architecture wants it.

    Its ``llama`` rotates neighboring pairs, so that the rows of each head are interleaved; ``qwen3`` rotates halves.
    """
    heads = {"q_proj": config.n_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
    if config.qk_norm or heads is None:
        return weight
    halves = weight.reshape(heads, 2, config.head_dim // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def unsupported_tokenizer(tokenizer: Tokenizer) -> str | None:
    """What of a tokenizer llama.cpp cannot express, or None."""
    if is_by_character(tokenizer):
        return None
    if is_gpt2_like(tokenizer):
        if end_of_text_id(tokenizer) is None:
            return "its tokenizer has no end-of-text token, and llama.cpp would take token 11 for it"
        return None
    return "its tokenizer is neither by character nor byte-level BPE with GPT-2's word pattern"


def _add_config(writer: Any, config: TransformerConfig, name: str, file_type: int) -> None:
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
