"""Measuring a bundle again: the same proof, later or elsewhere."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinytf.errors import UserError
from tinytf.export import manifest, reference
from tinytf.export.evaluation import Evaluation
from tinytf.export.formats import FORMATS
from tinytf.export.judge import FAILED, Judge, Outcome, crashed
from tinytf.export.subject import sha256
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
    beside = stated.get("beside", {})
    for name, digest in beside.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise UserError(f"{folder / name}: it is not the file that was exported; export again")
    judge = Judge.of(subject, evaluation, with_overrides(thresholds, stated["thresholds"]), threads)
    outcomes = []
    for entry in stated["artefacts"]:
        say(f"{entry['name']}: comparing with the model")
        # What an earlier export left was let pass by thresholds of its own.
        own = stated["thresholds"] | entry.get("thresholds", {})
        outcomes.append(_again(replace(judge, thresholds=with_overrides(thresholds, own)), folder, entry, say))
    weights = {key: stated["reference"][key] for key in ("file", "sha256")}
    content = manifest.describe(judge, outcomes, judge.reference_speed(outcomes), weights, beside)
    content["verified_against"] = found
    return content


def _again(judge: Judge, folder: Path, entry: dict[str, Any], say: Callable[[str], None]) -> Outcome:
    format = FORMATS.get(entry["name"])
    if format is None:
        raise UserError(f"{folder}: {entry['name']} is a format that this tinytf does not know: upgrade tinytf")
    path = folder / entry["file"]
    changed = manifest.changes(folder, entry)
    if changed:
        return Outcome(format, FAILED, path, reasons=changed)
    try:
        return judge.verdict(format, path)
    except Exception as error:
        # One artefact that its runtime does not load is no reason to leave the others unmeasured.
        say(traceback.format_exc())
        return crashed(format, path, error)
