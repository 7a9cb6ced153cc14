"""GGUF for llama.cpp: arch ``qwen3``, ``llama`` without QK-norm; float32, float16 or 8 bits, tokenizer included.

Byte-level BPE is written as llama.cpp's ``gpt2``, with the name of the pattern that cuts words; characters as its
``rwkv``: that takes the longest entry that fits, which for entries of one character is that character, and it alone
assumes no end-of-text id. With ``gpt2`` and ``llama``, a file that names none ends its texts at token 11 or 2, here a
letter.

Every file is read back and compared with the model, whether llama.cpp is installed or not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models

from tinytf.data.tokenizer import added_to_texts, begin_of_text_id, end_of_text_id, is_by_character
from tinytf.export.formats import Writer, end_of_turn_id, in_blocks
from tinytf.export.formats.gguf.llama_cpp import open_llama_cpp, tokenizer_problems
from tinytf.export.parity.runner import Runner, quiet
from tinytf.model import TransformerConfig
from tinytf.model.transformer import rotary_frequencies
from tinytf.weights.checkpoint import LoadedModel
from tinytf.weights.huggingface import LM_HEAD

Array = npt.NDArray[Any]

FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}

ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
"""How ``rwkv`` entries are written; other characters stand for themselves."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

OTHER_KEYS = {f"general.{name}" for name in ("architecture", "name", "file_type", "quantization_version")}
OTHER_KEYS |= {f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "merges")}
OTHER_KEYS |= {f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "unknown")}
OTHER_KEYS |= {f"tokenizer.ggml.{name}" for name in ("add_bos_token", "add_eos_token")}
"""What a file states besides the config, and the chat template if the model has one."""

CHAT_TEMPLATE_KEY = "tokenizer.chat_template"
PASS_THROUGH = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""In place of a template: without one, llama-cpp-python writes Llama 2's ``[INST]`` around a message, which a small
alphabet cannot spell."""
ROPE_FREQS = "rope_freqs.weight"
"""By what the frequency of each pair is divided: llama.cpp computes them without a scaling that is not linear."""

BLOCK = 32
"""Values that share one scale in Q8_0."""


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


def _split(numbers: str) -> dict[str, Any]:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


LLAMA_3 = "llama-bpe"
"""The name by which llama.cpp ignores merges, too: an entry of the vocabulary is a token, however it is merged."""

PRE_TOKENIZERS = {
    "gpt-2": [_byte_level(use_regex=True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
    LLAMA_3: [_split(r"\p{N}{1,3}"), _byte_level(use_regex=False)],
    "qwen2": [_split(r"\p{N}"), _byte_level(use_regex=False)],
}
"""llama.cpp's names, with the steps of the tokenizers that they stand for (`llama-vocab.cpp` has their patterns)."""

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
        if config.qk_norm and config.rope_scaling is not None and config.rope_scaling.rope_type == "llama3":
            return "llama.cpp's qwen3 has no rope_scaling of rope_type llama3 (its llama has: qk_norm false)"
        blocks = in_blocks(config, BLOCK) if self.kind == "Q8_0" else None
        return blocks or unsupported_tokenizer(loaded.tokenizer)

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        import gguf

        config = loaded.model.config
        with quiet():
            writer = gguf.GGUFWriter(str(path), architecture(config))
        writer.add_name(loaded.name)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[self.kind]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        adders = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        for name, value in stated_config(config).items():
            adders[type(value)](f"{architecture(config)}.{name}", value)
        _add_tokenizer(writer, loaded)
        for name, weight in loaded.model.state_dict().items():
            array = to_llama_cpp(name, weight.numpy(), config)
            # Norms stay in float32, as llama.cpp's own converter leaves them; they are a thousandth of the file.
            kind = gguf.GGMLQuantizationType[self.kind if array.ndim > 1 else "F32"]
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
        if has_rope_freqs(config):
            writer.add_tensor(ROPE_FREQS, rope_factors(config))
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
    """llama.cpp's name of a weight. Without ``output.weight`` its head is the embedding."""
    if name == "embed_tokens.weight":
        return "token_embd.weight"
    if name == LM_HEAD:
        return "output.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, layer, part = name.split(".", 2)
    return f"blk.{layer}.{NAMES[part.removesuffix('.weight')]}.weight"


def stated_config(config: TransformerConfig) -> dict[str, int | float | str]:
    """The config as a file states it, in llama.cpp's words; its architecture stands before each name."""
    scaling: dict[str, float | str] = {}
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "linear":
        scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_scaling.factor)}
    return scaling | {
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
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
    }


def has_rope_freqs(config: TransformerConfig) -> bool:
    """Whether the frequencies are changed in a way that takes a tensor to state."""
    return config.rope_scaling is not None and config.rope_scaling.rope_type == "llama3"


def rope_factors(config: TransformerConfig) -> Array:
    """By what llama.cpp divides the frequency of each pair, ``[head_dim / 2]``, as its own converter writes it."""
    plain = rotary_frequencies(config.head_size, config.rope_theta)
    scaled = rotary_frequencies(config.head_size, config.rope_theta, config.rope_scaling)
    return (plain / scaled).numpy()


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
    if pre_tokenizer_name(tokenizer) is None:
        known = ", ".join(PRE_TOKENIZERS)
        return f"its tokenizer is neither by character nor a byte-level BPE whose words llama.cpp can cut ({known})"
    if end_of_text_id(tokenizer) is None:
        return "its tokenizer has no end-of-text token, and llama.cpp would take token 11 for it"
    return None


def pre_tokenizer_name(tokenizer: Tokenizer) -> str | None:
    """llama.cpp's name for how a byte-level BPE cuts words, or None: it knows patterns by name, and takes no other."""
    model = tokenizer.model
    if not isinstance(model, models.BPE) or not isinstance(tokenizer.decoder, decoders.ByteLevel) or model.dropout:
        return None
    if model.continuing_subword_prefix or model.end_of_word_suffix or model.byte_fallback:
        return None
    stages = _stages(tokenizer.pre_tokenizer)
    name = next((name for name, known in PRE_TOKENIZERS.items() if known == stages), None)
    # NFC changes no text that tinytf's own encode accepts: it refuses what does not come back as it was.
    normalizer = json.loads(tokenizer.normalizer.__getstate__())["type"] if tokenizer.normalizer else None
    if normalizer not in ((None, "NFC") if name == "qwen2" else (None,)) or model.ignore_merges != (name == LLAMA_3):
        return None
    return name


def _stages(part: Any) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, without what changes offsets alone."""
    state = json.loads(part.__getstate__()) if part is not None else {}
    stages = state["pretokenizers"] if state.get("type") == "Sequence" else [state]
    return [{key: value for key, value in stage.items() if key != "trim_offsets"} for stage in stages]


def _add_tokenizer(writer: Any, loaded: LoadedModel) -> None:
    """Write tokens in the order of their ids, their types, and what llama.cpp needs to use them the same way."""
    tokenizer = loaded.tokenizer
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    by_id = {id: token for token, id in tokenizer.get_vocab(with_added_tokens=True).items()}
    # The embedding may have more rows than the tokenizer has entries.
    tokens = [by_id.get(id, f"<unused{id}>") for id in range(loaded.model.config.vocab_size)]
    kinds = {None: NORMAL, False: USER_DEFINED, True: CONTROL}
    types = [kinds[added.get(token)] if id in by_id else UNUSED for id, token in enumerate(tokens)]
    if is_by_character(tokenizer):
        writer.add_tokenizer_model("rwkv")
        writer.add_token_list([token.translate(ESCAPES) for token in tokens])
        writer.add_unk_token_id(stand_in(tokenizer))
    else:
        writer.add_tokenizer_model("gpt2")
        # With another name most texts have other ids: of GPT-2's, "default" changed 198 of 203, "llama-bpe" all.
        writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
        writer.add_token_list(tokens)
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        # llama.cpp refuses a file whose list of merges is empty.
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges] or [""])
    writer.add_token_types(types)
    begin, end = begin_of_text_id(tokenizer), end_of_text_id(tokenizer)
    if begin is not None:
        writer.add_bos_token_id(begin)
    if end is not None:
        writer.add_eos_token_id(end)
    # As its own post-processor does for transformers.
    writer.add_add_bos_token(begin in added_to_texts(tokenizer)[:1])
    writer.add_add_eos_token(False)
    turn = end_of_turn_id(loaded)
    if turn is not None:
        writer.add_eot_token_id(turn)
    writer.add_chat_template(loaded.chat_template if loaded.chat_template is not None else PASS_THROUGH)


def stand_in(tokenizer: Tokenizer) -> int:
    """The id that llama.cpp reads for each byte of an unknown character: a blank's, a line feed's or the first one's.

    Without one it reads id -1, at which clients abort. It still never returns from an unknown character whose first
    bytes begin a known one: its trie has such bytes, and no entry for them (seen in llama-cpp-python 0.3.36).
    """
    known = tokenizer.get_vocab(with_added_tokens=False)
    return next((known[each] for each in " \n" if each in known), min(known[each] for each in known if len(each) == 1))


def file_problems(loaded: LoadedModel, path: Path, kind: str) -> list[str]:
    """What a file states or holds that is not the model's, each in words; ``kind`` is gguf's type of its weights.

    Raises:
        RuntimeError: if it states what no file of tinytf does, or another chat template than the model's: that is code.
    """
    import gguf

    reader = gguf.GGUFReader(str(path))
    ours = {f"{architecture(loaded.model.config)}.{name}" for name in stated_config(loaded.model.config)} | OTHER_KEYS
    template = reader.get_field(CHAT_TEMPLATE_KEY)
    if template is not None:
        if template.contents() != (PASS_THROUGH if loaded.chat_template is None else loaded.chat_template):
            raise RuntimeError(f"its {CHAT_TEMPLATE_KEY} is not the model's: it is not opened")
        ours.add(CHAT_TEMPLATE_KEY)
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
    wrong = [
        name
        for name, value in wanted.items()
        if stated[name] is None or (value if isinstance(value, str) else np.float32(value)) != stated[name]
    ]
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
        if back.size != weight.numel() or not _is_near(back.reshape(weight.shape), weight.numpy(), kind):
            problems.append(f"tensor {tensor.name} is not {name}")
    factors = tensors.pop(ROPE_FREQS, None) if has_rope_freqs(config) else None
    if has_rope_freqs(config) and not _scales_frequencies(factors, config):
        problems.append(f"tensor {ROPE_FREQS} is missing or not the model's rope_scaling")
    return problems + [f"tensor {name} is not the model's" for name in tensors]


def _scales_frequencies(factors: Any, config: TransformerConfig) -> bool:
    """Whether plain frequencies divided by a tensor of the file are the model's, to float32."""
    if factors is None or factors.tensor_type.name != "F32" or factors.data.shape != (config.head_size // 2,):
        return False
    # In float64, from the definition.
    plain = float(config.rope_theta) ** -(np.arange(0, config.head_size, 2) / config.head_size)
    wanted = rotary_frequencies(config.head_size, config.rope_theta, config.rope_scaling).numpy()
    return bool(np.allclose(plain / factors.data, wanted, rtol=1e-5, atol=0))


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
