"""``export.json``: what a bundle holds, where it came from, and how far each artefact is from its model."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from tinytf import __version__
from tinytf.errors import UserError
from tinytf.export.evaluation import FILE
from tinytf.export.judge import FAILED, PASSED, Judge, Outcome
from tinytf.export.speed import Speed
from tinytf.export.subject import sha256

NAME = "export.json"
TEMPORARY = f".{NAME}.tmp"
FORMAT = 1
"""Raise it when a reader of the old one would misread the new."""

READ = ("checkpoint", "model", "evaluation", "reference", "thresholds", "artefacts")
"""What adding to an export or verifying it looks up."""

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
    judge: Judge, outcomes: Sequence[Outcome], eager: Speed, weights: dict[str, Any], beside: dict[str, str]
) -> dict[str, Any]:
    """The manifest of what was made or verified now.

    Args:
        eager: the checkpoint's own speed.
        weights: name and sha256 of the bundle's file with the reference weights.
        beside: sha256 of the files that graphs are run with, by name.
    """
    config = judge.subject.model.config
    return {
        "format": FORMAT,
        "tinytf": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "name": judge.subject.name,
        "checkpoint": judge.subject.source,
        "model": asdict(config) | {"parameters": config.parameter_count},
        "evaluation": {
            "file": FILE,
            "source": judge.evaluation.source,
            "tokens": judge.evaluation.tokens,
            "sequence": judge.evaluation.windows.shape[1] - 1,
            "sha256": judge.evaluation.sha256,
        },
        "reference": {
            **weights,
            "runtime": "torch eager, float32, highest precision, key-value cache",
            "prefill_tokens_per_sec": round(eager.prefill, 1),
            "decode_tokens_per_sec": round(eager.decode, 1),
        },
        "beside": beside,
        "thresholds": judge.thresholds,
        "machine": machine(judge.threads),
        "versions": versions(),
        "artefacts": [entry(outcome, judge) for outcome in outcomes if outcome.status != FAILED],
        "failed": [entry(outcome, judge) for outcome in outcomes if outcome.status == FAILED],
    }


def entry(outcome: Outcome, judge: Judge) -> dict[str, Any]:
    """One artefact: files with their sums, verdict, and every number measured."""
    written: dict[str, Any] = {
        "name": outcome.format.name,
        "file": outcome.format.file,
        "precision": outcome.format.precision,
        "status": outcome.status,
        "verified": outcome.status == PASSED,
        "reasons": outcome.reasons,
        "runtime": outcome.runtime,
        "evaluation_sha256": judge.evaluation.sha256,
        "thresholds": outcome.limits,
    }
    if outcome.format.label:
        written["label"] = outcome.format.label
    if outcome.path.exists():
        sums = file_sums(outcome.path)
        written |= {"bytes": sum(size for _, size in sums.values()), "sha256": {name: sums[name][0] for name in sums}}
    if outcome.measured:
        written["measured"] = asdict(outcome.measured)
    if outcome.unrounded:
        written["unrounded"] = asdict(outcome.unrounded)
    if outcome.speed:
        written["prefill_tokens_per_sec"] = round(outcome.speed.prefill, 1)
        written["decode_tokens_per_sec"] = round(outcome.speed.decode, 1)
    if outcome.speed and outcome.beside:
        written["decode_times_eager"] = round(outcome.speed.decode / outcome.beside.decode, 2)
    return written


def file_sums(path: Path) -> dict[str, tuple[str, int]]:
    """sha256 and size of a file, or of each file in a folder, by names that start with the artefact's own."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {file.relative_to(path.parent).as_posix(): (sha256(file), file.stat().st_size) for file in files}


def changes(folder: Path, entry: dict[str, Any]) -> list[str]:
    """Files of an artefact whose bytes are not those that were exported, each in words."""
    path = folder / entry["file"]
    if not path.exists():
        return [f"{entry['file']} is gone"]
    now = {name: digest for name, (digest, _) in file_sums(path).items()}
    return [
        f"{name} changed since it was exported" for name in entry["sha256"] if now.get(name) != entry["sha256"][name]
    ]


def machine(threads: int) -> dict[str, Any]:
    """What the speeds were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def versions() -> dict[str, str]:
    """Of the packages that write and run artefacts, as far as they are installed."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read(folder: Path) -> dict[str, Any]:
    """A bundle's manifest.

    Raises:
        UserError: where there is none, or none that this version reads.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the folder that tinytf export wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: it holds no {NAME}, so it is no export of tinytf, or one that did not finish"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: it is not JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise UserError(f"{path}: it was not written by tinytf")
    if content["format"] > FORMAT:
        raise UserError(f"{path}: its format {content['format']} is newer than this tinytf reads: upgrade tinytf")
    lost = [key for key in READ if key not in content]
    if lost:
        raise UserError(f"{path}: it has no {lost[0]}, so it is not whole: export again into an empty folder")
    return content


def write(folder: Path, content: dict[str, Any]) -> None:
    """In one rename, so that a bundle has a whole manifest or none."""
    temporary = folder / TEMPORARY
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(strict(content), file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / NAME)


def strict(value: Any) -> Any:
    """Non-finite numbers as words: what a failed artefact gives, and JSON has no sign for."""
    if isinstance(value, float) and not abs(value) < float("inf"):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: strict(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(part) for part in value]
    return value
