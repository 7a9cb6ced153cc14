"""``export.json``: what a bundle holds, where it came from, and how far each artifact is from its model.

A manifest may come from a stranger. Its names are looked up in our own tables and never joined to a path: what is
opened, linked or removed is always one of our own file names.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinytf import __version__
from tinytf.errors import UserError
from tinytf.export.formats import FORMATS
from tinytf.export.formats.huggingface import FILES, WEIGHTS
from tinytf.export.parity.check import FAILED, PASSED, CheckResult, ParityCheck
from tinytf.export.parity.speed import Speed
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

MAX_BYTES = 16 * 2**20

KINDS = {
    "name": str,
    "checkpoint": dict,
    "model": dict,
    "evaluation": dict,
    "reference": dict,
    "runtime_files": dict,
    "thresholds": dict,
    "artifacts": list,
}
"""What adding to a bundle or verifying it looks up."""

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
    check: ParityCheck,
    results: Sequence[CheckResult],
    baseline: Speed,
    reference: dict[str, Any],
    runtime_files: dict[str, str],
) -> dict[str, Any]:
    """The manifest of what was made or verified now.

    Args:
        baseline: the checkpoint's own speed.
        reference: name and sha256 of the bundle's file with the reference weights.
        runtime_files: sha256 of the files that graphs are run with, by name.
    """
    loaded, evaluation = check.loaded, check.evaluation
    config = loaded.model.config
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
    if result.speed:
        written["prefill_tokens_per_sec"] = round(result.speed.prefill, 1)
        written["decode_tokens_per_sec"] = round(result.speed.decode, 1)
    if result.speed and result.baseline:
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
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise UserError(f"{path}: it was not written by tinytf")
    if content["format"] > FORMAT:
        raise UserError(f"{path}: its format {content['format']} is newer than this tinytf reads: upgrade tinytf")
    missing = [key for key, kind in KINDS.items() if not isinstance(content.get(key), kind)]
    if missing:
        raise UserError(f"{path}: it has no {missing[0]}, so it is not whole: export again into an empty folder")
    _require_own_names(path, content)
    return content


def _require_own_names(path: Path, content: dict[str, Any]) -> None:
    names = set()
    for entry in content["artifacts"]:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in FORMATS:
            raise UserError(f"{path}: {name!r} is a format that this tinytf does not know: upgrade tinytf")
        _require(path, f"the file of {name}", entry.get("file"), (FORMATS[name].file,))
        if name in names or not isinstance(entry.get("sha256"), dict):
            raise UserError(f"{path}: its entry {name} is not whole: export again into an empty folder")
        names.add(name)
        _require_limits(path, entry.get("thresholds"))
    _require(path, "evaluation.file", content["evaluation"].get("file"), (EVALUATION,))
    _require(path, "reference.file", content["reference"].get("file"), REFERENCES)
    for name in content["runtime_files"]:
        _require(path, "a name in runtime_files", name, RUNTIME_FILES)
    _require_limits(path, content["thresholds"])


def _require(path: Path, what: str, name: Any, ours: Sequence[str]) -> None:
    if name not in ours:
        raise UserError(f"{path}: {what} is {name!r} and must be {' or '.join(ours)}: it was not written by tinytf")


def _require_limits(path: Path, limits: Any) -> None:
    known = isinstance(limits, dict) and all(
        row in THRESHOLDS and isinstance(limit, dict) and limit.keys() <= THRESHOLDS[row].keys()
        for row, limit in limits.items()
    )
    if not known or any(not isinstance(value, (int, float)) for limit in limits.values() for value in limit.values()):
        raise UserError(f"{path}: its thresholds are not those of this tinytf: export again into an empty folder")


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest in one rename."""
    with atomic_write(folder / NAME) as file:
        file.write(f"{strict_json(content, indent=2)}\n".encode())
