"""The formats: what each is called, which file it is, what it needs, and the `Writer` that writes and opens it.

This table imports no writer, so that ``tinytf export --help`` costs nothing. Graphs with onnxruntime's own fused
attention are built from the Hugging Face folder: ``python -m onnxruntime_genai.models.builder -i huggingface``.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinytf.errors import UserError

if TYPE_CHECKING:
    from tinytf.export.parity.runner import Runner
    from tinytf.model import TransformerConfig
    from tinytf.weights.checkpoint import LoadedModel


class Writer(ABC):
    """Writes, opens and checks the artifacts of one format; the first two methods are each format's own."""

    @abstractmethod
    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        """Write the artifact to ``path``; ``base`` is the verified artifact it is made from, if any."""

    @abstractmethod
    def open_runner(self, path: Path, threads: int) -> Runner:
        """The artifact in its own runtime, on this many CPU threads."""

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        """The property of the model that the format cannot express, or None."""
        return None

    def validate_artifact(self, loaded: LoadedModel, text: str, path: Path) -> list[str]:
        """What is wrong with the file besides its logits, such as other token ids, each in words."""
        return []

    def open_dequantized(self, loaded: LoadedModel, path: Path, threads: int) -> Runner | None:
        """The artifact with the model's own weights in place of quantized ones; None if it holds none."""
        return None


def in_blocks(config: TransformerConfig, block: int) -> str | None:
    """Why the inputs of the model's products do not fall into blocks of this many values, or None if they do."""
    heads = f"n_heads {config.n_heads} * head_dim {config.head_size} ="
    for name, size in (("d_model", config.d_model), ("d_ff", config.ff_dim), (heads, config.attention_dim)):
        if size % block:
            return f"its blocks are of {block} values, which do not divide {name} {size}"
    return None


def end_of_turn_id(loaded: LoadedModel) -> int | None:
    """The special token that ends an assistant's turn by the model's chat template; None if nothing says so."""
    from tinytf.data.examples.chat import Chat  # It takes Jinja, which --help has no need of.

    if loaded.chat_template is None:
        return None
    try:
        end: int | None = loaded.tokenizer.token_to_id(Chat.of(loaded.chat_template, loaded.tokenizer).end_of_turn())
    except UserError:  # It goes along as it is: what it is good for is not an export's to say.
        return None
    return end


@dataclass(frozen=True)
class Format:
    """One artifact of a bundle.

    Args:
        name: as in ``--formats``.
        file: name of the file or folder in the bundle.
        writer_path: ``module:object`` of its `Writer`, below this package.
        precision: row of the threshold table that applies.
        about: one line for ``--help``.
        base: the format it is made from, which is verified first.
        writing: packages needed to write it.
        running: packages needed to run it; without them it is "not verified".
        label: what a reader of the table must know of it.
        runs_code: whether opening a file of this format can run code that a stranger put into it.
        named: whether the user asked for it by name: if the model cannot be in it, it is refused, and not left out.
    """

    name: str
    file: str
    writer_path: str
    precision: str
    about: str
    base: str | None = None
    writing: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    label: str = ""
    runs_code: bool = False
    named: bool = True

    @property
    def implementation(self) -> Writer:
        """Its writer, imported when first asked for."""
        module, _, name = self.writer_path.partition(":")
        writer: Writer = getattr(import_module(f"{__name__}.{module}"), name)
        return writer

    def missing(self, purpose: str) -> list[str]:
        """Packages that are not installed, of those needed for ``"writing"`` or ``"running"``."""
        needed = self.writing if purpose == "writing" else self.running
        return [package for package in needed if find_spec(package) is None]


_ONNX: dict[str, Any] = {"writing": ("onnx", "onnxscript"), "running": ("onnxruntime", "onnx")}
_QUANTIZED: dict[str, Any] = {"writing": ("onnx", "onnxscript", "onnxruntime"), "running": ("onnxruntime", "onnx")}
_GGUF: dict[str, Any] = {"writing": ("gguf",), "running": ("gguf", "llama_cpp")}
_TABLE = (
    Format(
        "huggingface", "huggingface", "huggingface:HUGGINGFACE", "fp32",
        "folder for transformers and vLLM: config, safetensors, tokenizer, model card",
        writing=("transformers",), running=("transformers",),
    ),
    Format("onnx", "model.onnx", "onnx:PLAIN", "fp32", "tokens -> logits, dynamic batch and sequence", **_ONNX),
    Format(
        "onnx-kv", "model_kv.onnx", "onnx:WITH_CACHE", "fp32",
        "ONNX with past and present key-values: prefill and decode in one graph", **_ONNX,
    ),
    Format(
        "onnx-int8", "model_kv.int8.onnx", "onnx.quantize:INT8", "int8",
        "onnx-kv in int8, standard operators", base="onnx-kv", **_QUANTIZED,
    ),
    Format(
        "onnx-int4", "model_kv.int4.onnx", "onnx.quantize:INT4", "int4",
        "onnx-kv with 4-bit weights (MatMulNBits), for onnxruntime", base="onnx-kv", **_QUANTIZED,
    ),
    Format(
        "web", "web", "web:WEB", "int8", "static page that runs onnx-int8 in a browser", base="onnx-int8",
        writing=(*_QUANTIZED["writing"], "transformers"), running=_QUANTIZED["running"],
    ),
    Format(
        "torchscript", "model.torchscript.pt", "torch_programs:TORCHSCRIPT", "exact", "traced; loads with torch alone",
        label="PyTorch is retiring TorchScript: prefer pt2", runs_code=True,
    ),
    Format(
        "pt2", "model.pt2", "torch_programs:PT2", "fp32", "torch.export program; loads with torch alone",
        runs_code=True,
    ),
    Format("gguf-f32", "model.f32.gguf", "gguf:F32", "llamacpp", "llama.cpp, float32", **_GGUF),
    Format("gguf-f16", "model.f16.gguf", "gguf:F16", "fp16", "llama.cpp, float16", base="gguf-f32", **_GGUF),
    Format("gguf-q8_0", "model.q8_0.gguf", "gguf:Q8_0", "int8", "llama.cpp, 8 bits", base="gguf-f32", **_GGUF),
)  # fmt: skip

FORMATS = {format.name: format for format in _TABLE}
DEFAULT = "default"
_GGUF_TYPES = ("gguf-f32", "gguf-f16", "gguf-q8_0")
GROUPS = {
    "gguf": _GGUF_TYPES,
    # Not onnx-int4: small models lose more in 4 bits. One of 300 entries kept 0.9075 of the likeliest tokens, under
    # 0.93.
    DEFAULT: ("huggingface", "onnx", "onnx-kv", "onnx-int8", "torchscript", *_GGUF_TYPES, "pt2"),
}
"""Names for several formats. Of `DEFAULT`, those that the model cannot be in are left out."""


def choose(names: Sequence[str], *, installed: bool = True) -> list[Format]:
    """The formats of these names, groups expanded, each once, in the order given.

    Args:
        installed: whether the packages that write them must be there.

    Raises:
        UserError: if a name is none of them, or a package to write one is missing.
    """
    known = [*FORMATS, *GROUPS]
    if not names:
        raise UserError(f"--formats is empty: give some of {', '.join(known)}")
    chosen: dict[str, Format] = {}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {near[0]}?" if near else "."
            raise UserError(f"unknown format {name!r}{hint} Formats: {', '.join(known)}")
        for member in GROUPS.get(name, (name,)):
            if name != DEFAULT:
                chosen[member] = FORMATS[member]
            else:
                chosen.setdefault(member, replace(FORMATS[member], named=False))
    for format in chosen.values() if installed else ():
        # Every bundle carries the weights it can be verified against, in safetensors.
        needed = ("safetensors", *format.writing, *(FORMATS[format.base].writing if format.base else ()))
        absent = [name for name in dict.fromkeys(needed) if find_spec(name) is None]
        if absent:
            raise UserError(f"format {format.name} needs {', '.join(absent)}: pip install 'tinytf[export]'")
    return list(chosen.values())
