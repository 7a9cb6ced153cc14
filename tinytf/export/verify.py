"""Measuring a bundle again: the same proof, later or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinytf.errors import UserError
from tinytf.export import manifest, reference
from tinytf.export.evaluation import Evaluation
from tinytf.export.formats import FORMATS
from tinytf.export.judge import FAILED, Judge, Outcome
from tinytf.export.thresholds import with_overrides


def verify(
    folder: Path, ckpt_path: Path | None, thresholds: Sequence[str], threads: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """The manifest as it would be written today; nothing is written.

    Raises:
        UserError: where the folder is no export, or there is nothing to compare it with.
    """
    stated = manifest.read(folder)
    subject, found = reference.find(folder, stated, ckpt_path)
    say(f"comparing with {found}")
    evaluation = Evaluation.load(folder / stated["evaluation"]["file"], stated["evaluation"]["source"])
    if evaluation.sha256 != stated["evaluation"]["sha256"]:
        raise UserError(f"{folder / stated['evaluation']['file']}: it is not the evaluation set that was exported")
    judge = Judge.of(subject, evaluation, with_overrides(thresholds, stated["thresholds"]), threads)
    outcomes = []
    for entry in stated["artefacts"]:
        say(f"{entry['name']}: comparing with the model")
        outcomes.append(_again(judge, folder, entry))
    weights = {key: stated["reference"][key] for key in ("file", "sha256")}
    content = manifest.describe(judge, outcomes, judge.reference_speed(outcomes), weights)
    content["verified_against"] = found
    return content


def _again(judge: Judge, folder: Path, entry: dict[str, Any]) -> Outcome:
    format = FORMATS.get(entry["name"])
    if format is None:
        raise UserError(f"{folder}: {entry['name']} is a format that this tinytf does not know: upgrade tinytf")
    path = folder / entry["file"]
    changed = _changes(folder, entry)
    if changed:
        return Outcome(format, FAILED, path, reasons=changed)
    return judge.verdict(format, path)


def _changes(folder: Path, entry: dict[str, Any]) -> list[str]:
    """Files whose bytes are not those that were exported."""
    path = folder / entry["file"]
    if not path.exists():
        return [f"{entry['file']} is gone"]
    sums = manifest.file_sums(path)
    now = {name: digest for name, (digest, _) in sums.items()}
    return [
        f"{name} changed since it was exported" for name in entry["sha256"] if now.get(name) != entry["sha256"][name]
    ]
