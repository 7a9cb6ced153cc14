"""GGUF for llama.cpp: arch ``qwen3``, ``llama`` without QK-norm; float32, float16 or 8 bits, tokenizer included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinytf.export.gguf_layout import BLOCK, architecture, gguf_name, to_llama_cpp
from tinytf.export.gguf_reading import file_problems
from tinytf.export.gguf_running import open_llama_cpp
from tinytf.export.gguf_tokenizer import add_tokenizer, refuse_tokenizer, tokenizer_problems
from tinytf.export.quiet import quiet
from tinytf.export.runner import Runner
from tinytf.export.subject import Subject
from tinytf.model import TransformerConfig


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
        """What read back differs from the model, and texts that llama.cpp tokenises otherwise."""
        return file_problems(subject, path, self.kind) + tokenizer_problems(subject.tokenizer, text, path)


_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}

F32 = Gguf("F32")
F16 = Gguf("F16")
Q8_0 = Gguf("Q8_0")


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
