"""``export.json``: what a bundle holds, where it came from, and how far each artifact is from its model.

A manifest may come from a stranger. Its names are looked up in our own tables and never joined to a path: what is
opened, linked or removed is always one of our own file names.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinytf import __version__
from tinytf.errors import UserError
from tinytf.export.formats import FORMATS
from tinytf.export.formats.huggingface import FILES, WEIGHTS
from tinytf.export.parity.check import FAILED, PASSED, CheckResult, ParityCheck
from tinytf.export.parity.thresholds import THRESHOLDS
from tinytf.utils.files import atomic_write, sha256_of
from tinytf.utils.machine import cpu_name, package_versions
from tinytf.utils.text import strict_json, utc_now

NAME = "export.json"
EVALUATION = "evaluation.npy"
REFERENCE = "reference.safetensors"
REFERENCES = (f"{FORMATS['huggingface'].file}/{WEIGHTS}", REFERENCE)
"""Where the weights to compare with may be: transformers' own file if that was exported."""

RUNTIME_FILES = ("tokenizer.json", "config.json")
"""What graphs are run with."""

COMPANIONS = (NAME, EVALUATION, REFERENCE, *RUNTIME_FILES)
"""What tinytf writes into a bundle besides artifacts."""

FORMAT = 1
"""Raise it when a reader of the old one would misread the new."""

# Ours are some 10 KB: 3 KB, and 600 bytes per artifact.
MAX_BYTES = 16 * 2**20

VERSIONED = (
    "torch",
    "numpy",
    "tokenizers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "safetensors",
    "transformers",
    "gguf",
    "llama-cpp-python",
)


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
        files = artifact_files(result.path)
        written["bytes"] = sum(file.stat().st_size for file in files.values())
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


def artifact_files(path: Path) -> dict[str, Path]:
    """A file, or each file in a folder, by names that start with the artifact's own."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {file.relative_to(path.parent).as_posix(): file for file in files}


def own_paths(artifacts: Sequence[dict[str, Any]]) -> set[str]:
    """Paths in a bundle with these artifacts that tinytf writes; every other is the user's."""
    paths = {*COMPANIONS, *(FORMATS[entry["name"]].file for entry in artifacts)}
    folder = FORMATS["huggingface"].file
    return paths | {f"{folder}/{name}" for name in FILES} if folder in paths else paths


def changes(folder: Path, entry: dict[str, Any]) -> list[str]:
    """Files of an artifact that are gone or whose bytes are not those that were exported, each in words."""
    path = folder / FORMATS[entry["name"]].file
    if not path.exists():
        return [f"{path.name} is gone"]
    files = artifact_files(path)
    return [
        f"{name} changed since it was exported"
        for name, digest in entry["sha256"].items()
        if name not in files or sha256_of(files[name]) != digest
    ]


def read(folder: Path) -> dict[str, Any]:
    """A bundle's manifest, with every name in it one of ours.

    Raises:
        UserError: if there is none, or none that this version reads; names what is not ours.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the folder that tinytf export wrote")
    if not path.exists():
        raise UserError(f"{folder}: it holds no {NAME}, so it is not an export of tinytf, or one that did not finish")
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: it was not written by tinytf")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: it is not JSON ({error})") from error
    problem = next(_problems(content), None)
    if problem:
        raise UserError(f"{path}: {problem}")
    return content


KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "checkpoint": dict,
    "checkpoint.sha256": (str, type(None)),
    "model": dict,
    "evaluation": dict,
    "evaluation.source": str,
    "evaluation.sha256": str,
    "reference": dict,
    "reference.sha256": str,
    "runtime_files": dict,
    "thresholds": dict,
    "artifacts": list,
}
"""What adding to a bundle or verifying it looks up."""


def _problems(content: Any) -> Iterator[str]:
    """What is wrong with a manifest, in words; each line relies on those before it."""
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int):
        yield "it was not written by tinytf"
    elif version > FORMAT:
        yield f"its format {version} is newer than this tinytf reads: upgrade tinytf"
    for key, kind in KINDS.items():
        outer, _, inner = key.partition(".")
        if not isinstance(content[outer].get(inner) if inner else content.get(outer), kind):
            yield f"it has no {key}, so it is not whole: export again into an empty folder"
    yield from _not_ours("evaluation.file", content["evaluation"].get("file"), (EVALUATION,))
    yield from _not_ours("reference.file", content["reference"].get("file"), REFERENCES)
    for name in content["runtime_files"]:
        yield from _not_ours("a name in runtime_files", name, RUNTIME_FILES)
    names = set()
    for entry in content["artifacts"]:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in FORMATS:
            yield f"{name!r} is a format that this tinytf does not know: upgrade tinytf"
        yield from _not_ours(f"the file of {name}", entry.get("file"), (FORMATS[name].file,))
        if name in names or not isinstance(entry.get("sha256"), dict):
            yield f"its entry {name} is not whole: export again into an empty folder"
        names.add(name)
    for limits in (content["thresholds"], *(entry.get("thresholds") for entry in content["artifacts"])):
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
        and all(isinstance(value, (int, float)) and abs(value) < math.inf for value in limit.values())
        for row, limit in limits.items()
    )


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest in one rename."""
    with atomic_write(folder / NAME) as file:
        file.write(f"{strict_json(content, indent=2)}\n".encode())
