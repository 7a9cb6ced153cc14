"""``export.json``: what a bundle holds, where it came from, and how far each artifact is from its model.

A manifest may come from a stranger. Its names are looked up in our own tables and never joined to a path: what is
opened, linked or removed is always one of our own file names.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any

from tinytf import __version__
from tinytf.errors import UserError
from tinytf.export.formats import FORMATS, Format
from tinytf.export.formats.gguf import ollama
from tinytf.export.formats.huggingface import FILES
from tinytf.export.formats.huggingface_onnx import ADDED, GRAPHS
from tinytf.export.formats.web import WEB_FILES
from tinytf.export.parity.check import FAILED, NOT_VERIFIED, PASSED, CheckResult, ParityCheck
from tinytf.export.parity.compare import ParityMetrics
from tinytf.export.parity.thresholds import THRESHOLDS
from tinytf.utils.files import atomic_write, read_text, sha256_of, user_path
from tinytf.utils.machine import cpu_name, package_versions
from tinytf.utils.text import read_json, strict_json, utc_now
from tinytf.weights.huggingface import CHAT_TEMPLATE, WEIGHTS

NAME = "export.json"
EVALUATION = "evaluation.npy"
REFERENCE = "reference.safetensors"
REFERENCES = (f"{FORMATS['huggingface'].file}/{WEIGHTS}", REFERENCE)
"""Where the weights to compare with may be: transformers' own file if that was exported."""

RUNTIME_FILES = ("tokenizer.json", "config.json", CHAT_TEMPLATE)
"""What graphs are run with; the last is there if the model has one."""

CARD = "README.md"
TEXTS = (CARD, ollama.NAME)
EDITABLE = (*TEXTS, f"{FORMATS['huggingface'].file}/{CARD}")
"""Texts for people, and for Ollama, which are made to be edited."""

COMPANIONS = (NAME, EVALUATION, REFERENCE)
"""What tinytf writes into a bundle besides artifacts and runtime files."""

FORMAT = 1
"""Raise it when a reader of the old one would misread the new."""

# Ours are some 10 KB: 3 KB, and 600 bytes per artifact.
MAX_BYTES = 16 * 2**20
LARGEST = 1e300

VERSIONED = (
    "torch", "numpy", "tokenizers", "onnx", "onnxscript", "onnxruntime", "safetensors", "transformers", "gguf",
    "llama-cpp-python",
)  # fmt: skip


def describe(
    check: ParityCheck, results: Sequence[CheckResult], reference: dict[str, Any], runtime_files: dict[str, str]
) -> dict[str, Any]:
    """The manifest of what was made or verified now.

    Args:
        reference: name and sha256 of the bundle's file with the reference weights.
        runtime_files: sha256 of the files that graphs are run with, by name.
    """
    loaded, evaluation = check.loaded, check.evaluation
    config, baseline = loaded.model.config, check.baseline_speed(results)
    return {
        "format": FORMAT,
        "tinytf": __version__,
        "created": utc_now(),
        "name": loaded.name,
        "checkpoint": {"path": loaded.path and str(loaded.path), "sha256": loaded.sha256, "step": loaded.step},
        "model": asdict(config) | {"parameters": config.parameter_count},
        "evaluation": {
            "file": EVALUATION,
            "source": evaluation.source,
            "tokens": evaluation.tokens,
            "sequence": evaluation.windows.shape[1] - 1,
            "sha256": evaluation.sha256,
        },
        "reference": {
            **reference,
            "runtime": "torch eager, float32, highest precision, key-value cache",
            "prefill_tokens_per_sec": round(baseline.prefill, 1),
            "decode_tokens_per_sec": round(baseline.decode, 1),
        },
        "runtime_files": runtime_files,
        "thresholds": check.thresholds,
        "machine": {
            "processor": cpu_name(),
            "cores": os.cpu_count(),
            "threads": check.threads,
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "versions": package_versions(VERSIONED),
        "artifacts": [entry(result, check) for result in results if result.status != FAILED],
        "failed": [entry(result, check) for result in results if result.status == FAILED],
    }


def entry(result: CheckResult, check: ParityCheck) -> dict[str, Any]:
    """One artifact: files with their sums, status, and every number measured."""
    written: dict[str, Any] = {
        "name": result.format.name,
        "file": result.format.file,
        "precision": result.format.precision,
        "status": result.status,
        "verified": result.status == PASSED,
        "reasons": result.reasons,
        "runtime": result.runtime,
        "evaluation_sha256": check.evaluation.sha256,
        "thresholds": result.limits,
    }
    if result.format.label:
        written["label"] = result.format.label
    if result.path.exists():
        files = {name: result.path.parent / name for name in own_files(result.format)}
        files = {name: file for name, file in files.items() if file.is_file()}
        # Second names take no space of their own.
        written["bytes"] = sum(file.stat().st_size for name, file in files.items() if name not in ADDED)
        written["sha256"] = {name: sha256_of(file) for name, file in files.items()}
    if result.metrics:
        written["measured"] = asdict(result.metrics)
    if result.dequantized:
        written["dequantized"] = asdict(result.dequantized)
    if result.speed and result.baseline:
        written["prefill_tokens_per_sec"] = round(result.speed.prefill, 1)
        written["decode_tokens_per_sec"] = round(result.speed.decode, 1)
        written["decode_times_eager"] = round(result.speed.decode / result.baseline.decode, 2)
    return written


def own_files(format: Format) -> list[str]:
    """The files that an artifact may have, by their paths in the bundle."""
    if format.name == "huggingface":
        return sorted({*(f"{format.file}/{name}" for name in FILES), *GRAPHS.values()})
    return [f"{format.file}/{name}" for name in WEB_FILES] if format.name == "web" else [format.file]


def own_paths(content: dict[str, Any]) -> set[str]:
    """Paths in a bundle with this manifest that tinytf writes; every other is the user's."""
    artifacts = ((FORMATS[entry["name"]].file, *entry["sha256"]) for entry in content["artifacts"])
    companions = (*COMPANIONS, *content["runtime_files"], *content.get("texts", ()))
    return {*companions, *chain.from_iterable(artifacts)}


def changes(folder: Path, entry: dict[str, Any]) -> list[str]:
    """Files of an artifact that are gone or whose bytes are not those that were exported, each in words.

    Texts for people may be edited, or removed.
    """
    path = folder / FORMATS[entry["name"]].file
    if not path.exists():
        return [f"{path.name} is gone"]
    if path.is_dir() and path.is_symlink():  # A link to a file is how the hub's cache keeps it.
        return [f"{path.name} is a link to a folder, which tinytf does not make"]
    return [
        f"{name} changed since it was exported"
        for name, digest in entry["sha256"].items()
        if name not in EDITABLE and (not (folder / name).is_file() or sha256_of(folder / name) != digest)
    ]


def edited(folder: Path, content: dict[str, Any]) -> list[str]:
    """Texts for people that are in a folder, and not as they were exported; a user may have written one himself."""
    sums = dict(content.get("texts", {}))
    sums |= {name: digest for entry in content["artifacts"] for name, digest in entry["sha256"].items()}
    texts = {name: folder / name for name in EDITABLE if name in TEXTS or name in sums}
    return [name for name, path in texts.items() if path.is_file() and sha256_of(path) != sums.get(name)]


def read(folder: Path) -> dict[str, Any]:
    """A bundle's manifest, with every name in it one of ours.

    Raises:
        UserError: if there is none, or none that this version reads; names what is not ours.
    """
    path = user_path(folder / NAME, what="manifest")
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the folder that tinytf export wrote")
    if not path.exists():
        raise UserError(f"{folder}: it holds no {NAME}, so it is not an export of tinytf, or one that did not finish")
    content = read_json(read_text(path, what="manifest", limit=MAX_BYTES), f"manifest {path}")
    problem = next(_problems(content), None)
    if problem:
        raise UserError(f"{path}: {problem}")
    return content


def _is_number(value: Any) -> bool:
    # NaN is none, and a whole number of 400 digits is no float.
    return isinstance(value, (int, float)) and abs(value) < LARGEST


_DISTANCE = {field.name: _is_number for field in fields(ParityMetrics)}
_SPEEDS = {"prefill_tokens_per_sec": _is_number, "decode_tokens_per_sec": _is_number}
MODEL: dict[str, Any] = {
    "name": str,
    "checkpoint": {"path": (str, NoneType), "sha256": (str, NoneType), "step": int},
    "model": dict,
    "evaluation": {"file": (EVALUATION,).__contains__, "source": str, "sha256": str},
    "reference": {"file": REFERENCES.__contains__, "sha256": str},
    "runtime_files": dict,
    "texts?": dict,
    "thresholds": dict,
    "skipped?": [{"name": FORMATS.__contains__, "reason": str}],
    "artifacts": [
        {
            "name": FORMATS.__contains__,
            "file": str,
            "status": (PASSED, NOT_VERIFIED).__contains__,
            "reasons": [str],
            "runtime": str,
            "thresholds": dict,
            "bytes": _is_number,
            "sha256": dict,
            "label?": str,
            "measured?": _DISTANCE,
            "dequantized?": _DISTANCE,
            "decode_times_eager?": _is_number,
            **{f"{name}?": kind for name, kind in _SPEEDS.items()},
        }
    ],
}
"""What adding to a bundle, verifying it or printing it looks up: types, or what must hold of a value."""


def _misfits(value: Any, model: Any, name: str = "") -> Iterator[str]:
    """Names of what is missing or not as a model says, the first one first."""
    if isinstance(model, dict) and isinstance(value, dict):
        for key, inner in model.items():
            if key.removesuffix("?") in value:
                yield from _misfits(value[key.removesuffix("?")], inner, f"{name}.{key}".strip(".?"))
            elif not key.endswith("?"):
                yield f"{name}.{key}".strip(".")
    elif isinstance(model, list) and isinstance(value, list):
        for position, each in enumerate(value):
            yield from _misfits(each, model[0], f"{name}[{position}]")
    elif isinstance(model, (type, tuple)):
        if not isinstance(value, model):
            yield name
    elif isinstance(model, (dict, list)) or isinstance(value, (dict, list)) or not model(value):
        yield name


def _problems(content: Any) -> Iterator[str]:
    """What is wrong with a manifest, in words; each line relies on those before it."""
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int):
        yield "it was not written by tinytf"
    elif version > FORMAT:
        yield f"its format {version} is newer than this tinytf reads: upgrade tinytf"
    for name in _misfits(content, MODEL):
        yield f"its {name} is missing or not one of this tinytf: export again into an empty folder, or upgrade tinytf"
    for name in content["runtime_files"]:
        yield from _not_ours("a name in runtime_files", name, RUNTIME_FILES)
    for name in content.get("texts", ()):
        yield from _not_ours("a name in texts", name, TEXTS)
    names = [entry["name"] for entry in content["artifacts"]]
    for entry in content["artifacts"]:
        name = entry["name"]
        yield from _not_ours(f"the file of {name}", entry["file"], (FORMATS[name].file,))
        for file in entry["sha256"]:
            yield from _not_ours(f"a file of {name}", file, own_files(FORMATS[name]))
        if names.count(name) > 1:
            yield f"it lists {name} twice: export again into an empty folder"
    # Nobody compares them under their second names: they must be what is compared.
    digests = {name: digest for entry in content["artifacts"] for name, digest in entry["sha256"].items()}
    for name, copy in GRAPHS.items():
        if copy in digests and digests[copy] != digests.get(FORMATS[name].file):
            yield f"its {copy} is not {FORMATS[name].file}: export again into an empty folder"
    for limits in (content["thresholds"], *(entry["thresholds"] for entry in content["artifacts"])):
        if not _are_limits(limits):
            yield "its thresholds are not those of this tinytf: export again into an empty folder"


def _not_ours(what: str, name: Any, ours: Sequence[str]) -> Iterator[str]:
    if name not in ours:
        yield f"{what} is {name!r} and must be {' or '.join(ours)}: it was not written by tinytf"


def _are_limits(limits: Any) -> bool:
    return isinstance(limits, dict) and all(
        row in THRESHOLDS
        and isinstance(limit, dict)
        and limit.keys() <= THRESHOLDS[row].keys()
        and all(map(_is_number, limit.values()))
        for row, limit in limits.items()
    )


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest in one rename."""
    with atomic_write(folder / NAME) as file:
        file.write(f"{strict_json(content, indent=2)}\n".encode())
