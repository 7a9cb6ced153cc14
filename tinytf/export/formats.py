"""The formats: what each is called, where it lands, what it needs, and the module that writes and opens it.

A format's module (or an object in it, after a colon) has the first two of these functions, the others where needed:

    write(subject, path, base)     the artefact, from the model or from the verified fp32 artefact at ``base``
    open_runner(path, threads)     the artefact in its own runtime, as a `Runner`
    refusal(subject)               the property of the model that the format cannot express, or None
    problems(subject, text, path)  what is wrong with the file besides its logits, such as other token ids
    open_unrounded(subject, path, threads)   the artefact with the model's own weights in the place of rounded ones

This table imports none of them, so that ``tinytf export --help`` costs nothing. Graphs with onnxruntime's own fused
attention come from the Hugging Face folder: ``python -m onnxruntime_genai.models.builder -i huggingface``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinytf.errors import UserError

if TYPE_CHECKING:
    from tinytf.export.runner import Runner
    from tinytf.export.subject import Subject


@dataclass(frozen=True)
class Format:
    """One artefact of a bundle.

    Args:
        name: as in ``--formats``.
        file: final name of the file or folder in the bundle.
        module: what writes and opens it, see above.
        precision: row of the threshold table it is held to.
        about: one line for ``--help``.
        base: the fp32 format it is made from, which is verified first.
        writing: packages needed to write it.
        running: packages needed to run it; without them it is "not verified".
        label: what a reader of the table must know of it.
    """

    name: str
    file: str
    module: str
    precision: str
    about: str
    base: str | None = None
    writing: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    label: str = ""

    @property
    def _implementation(self) -> Any:
        module, _, name = self.module.partition(":")
        imported = import_module(module)
        return getattr(imported, name) if name else imported

    def write(self, subject: Subject, path: Path, base: Path | None) -> None:
        """Write the artefact to ``path``; ``base`` is the verified fp32 artefact it is made from, if any."""
        self._implementation.write(subject, path, base)

    def open_runner(self, path: Path, threads: int) -> Runner:
        """The artefact in its own runtime, on so many CPU threads."""
        opened: Runner = self._implementation.open_runner(path, threads)
        return opened

    def refusal(self, subject: Subject) -> str | None:
        """Why this model cannot be written so, or None."""
        why: Callable[[Subject], str | None] = getattr(self._implementation, "refusal", lambda _: None)
        return why(subject)

    def problems(self, subject: Subject, text: str, path: Path) -> list[str]:
        """What is wrong with the artefact besides its logits, each in words."""
        look: Callable[[Subject, str, Path], list[str]] = getattr(self._implementation, "problems", lambda *_: [])
        return look(subject, text, path)

    def open_unrounded(self, subject: Subject, path: Path, threads: int) -> Runner | None:
        """The artefact with its rounding undone, which must be the model to float32; None where nothing is to undo."""
        undo: Callable[..., Runner | None] = getattr(self._implementation, "open_unrounded", lambda *_: None)
        return undo(subject, path, threads)

    def missing(self, purpose: str) -> list[str]:
        """Packages that are not installed, of those needed for ``"writing"`` or ``"running"``."""
        needed = self.writing if purpose == "writing" else self.running
        return [package for package in needed if find_spec(package) is None]


_ONNX = ("onnx", "onnxscript")
_TABLE = (
    Format(
        "huggingface",
        "huggingface",
        "tinytf.export.huggingface",
        "fp32",
        "folder for transformers and vLLM: config, safetensors, tokenizer, model card",
        running=("transformers",),
    ),
    Format(
        "onnx",
        "model.onnx",
        "tinytf.export.onnx_plain",
        "fp32",
        "tokens -> logits, dynamic batch and sequence",
        writing=_ONNX,
        running=("onnxruntime",),
    ),
    Format(
        "onnx-kv",
        "model_kv.onnx",
        "tinytf.export.onnx_kv",
        "fp32",
        "ONNX with past and present key-values: prefill and decode in one graph",
        writing=_ONNX,
        running=("onnxruntime",),
    ),
    Format(
        "onnx-int8",
        "model_kv.int8.onnx",
        "tinytf.export.onnx_int8",
        "int8",
        "onnx-kv in int8, standard operators",
        base="onnx-kv",
        writing=(*_ONNX, "onnxruntime"),
        running=("onnxruntime", "onnx"),
    ),
    Format(
        "onnx-int4",
        "model_kv.int4.onnx",
        "tinytf.export.onnx_int4",
        "int4",
        "onnx-kv with 4-bit weights (MatMulNBits), for onnxruntime",
        base="onnx-kv",
        writing=(*_ONNX, "onnxruntime"),
        running=("onnxruntime", "onnx"),
    ),
    Format(
        "torchscript",
        "model.torchscript.pt",
        "tinytf.export.torchscript",
        "exact",
        "traced; loads with torch alone",
        label="PyTorch is retiring TorchScript: prefer pt2",
    ),
    Format("pt2", "model.pt2", "tinytf.export.pt2", "fp32", "torch.export program; loads with torch alone"),
    Format(
        "gguf-f32",
        "model.f32.gguf",
        "tinytf.export.gguf_file:F32",
        "llamacpp",
        "llama.cpp, float32",
        writing=("gguf",),
        running=("gguf", "llama_cpp"),
    ),
    Format(
        "gguf-f16",
        "model.f16.gguf",
        "tinytf.export.gguf_file:F16",
        "fp16",
        "llama.cpp, float16",
        base="gguf-f32",
        writing=("gguf",),
        running=("gguf", "llama_cpp"),
    ),
    Format(
        "gguf-q8_0",
        "model.q8_0.gguf",
        "tinytf.export.gguf_file:Q8_0",
        "int8",
        "llama.cpp, 8 bits",
        base="gguf-f32",
        writing=("gguf",),
        running=("gguf", "llama_cpp"),
    ),
)

FORMATS = {format.name: format for format in _TABLE}
GROUPS = {
    "gguf": ("gguf-f32", "gguf-f16", "gguf-q8_0"),
}
"""Names that stand for several formats."""

ALWAYS = ("safetensors",)
"""Every bundle carries the weights it can be verified against."""

DEFAULT = ("huggingface", "onnx", "onnx-kv", "onnx-int8", "torchscript", "gguf", "pt2")


def choose(names: Sequence[str]) -> list[Format]:
    """The formats of these names, groups opened, each once, in the order given.

    Raises:
        UserError: where a name is none of them, or a package to write one is missing.
    """
    if not names:
        raise UserError(f"--formats is empty: give some of {', '.join([*FORMATS, *GROUPS])}")
    chosen: dict[str, Format] = {}
    for name in names:
        if name not in FORMATS and name not in GROUPS:
            near = difflib.get_close_matches(name, [*FORMATS, *GROUPS], n=1)
            hint = f", did you mean {near[0]}?" if near else "."
            raise UserError(f"unknown format {name!r}{hint} Formats: {', '.join([*FORMATS, *GROUPS])}")
        for member in GROUPS.get(name, (name,)):
            chosen[member] = FORMATS[member]
    for format in chosen.values():
        require(format)
    return list(chosen.values())


def require(format: Format) -> None:
    """Raise UserError where a package that writes this format, or the one it is made from, is missing."""
    absent = [name for name in ALWAYS if find_spec(name) is None] + format.missing("writing")
    if absent:
        raise UserError(f"format {format.name} needs {', '.join(absent)}: pip install 'tinytf[export]'")
    if format.base:
        require(FORMATS[format.base])
