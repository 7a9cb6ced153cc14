"""Making a bundle: every artefact is written aside, proven, and only then takes its name."""

from __future__ import annotations

import errno
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinytf.errors import RunError, UserError
from tinytf.export import manifest
from tinytf.export.evaluation import FILE as EVALUATION
from tinytf.export.folder import Earlier, partial_folder, publish, refuse_strangers, remove
from tinytf.export.formats import FORMATS, Format
from tinytf.export.huggingface import WEIGHTS, write_weights
from tinytf.export.judge import FAILED, Judge, Outcome, crashed
from tinytf.export.subject import Subject, sha256

HUGGINGFACE = FORMATS["huggingface"].file
REFERENCE = "reference.safetensors"
COMPANIONS = ("tokenizer.json", "config.json", EVALUATION, REFERENCE)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

Say = Callable[[str], None]


def refuse_unfit(formats: Sequence[Format], subject: Subject) -> None:
    """Raise UserError where a format, or the one it is made from, cannot express this model; before any is written."""
    if subject.model.config.max_seq_len < 2:
        raise UserError("max_seq_len is 1: a model that reads one token writes no text to compare; there is no export")
    for format in formats:
        for needed in (format, FORMATS[format.base]) if format.base else (format,):
            why = needed.refusal(subject)
            if why:
                raise UserError(f"format {format.name} cannot express this model: {why}; leave it out of --formats")


def export(judge: Judge, formats: Sequence[Format], folder: Path, *, replace: bool, say: Say) -> dict[str, Any]:
    """Write, prove and publish a bundle.

    Args:
        judge: the model and what it is compared on.
        formats: what to make.
        folder: where; made if missing.
        replace: let the export of another checkpoint make way; otherwise it is refused.
        say: told what happens, line by line.

    Returns:
        The content of ``export.json``; its ``failed`` lists what did not pass, and is not in the folder.

    Raises:
        UserError: where the folder holds something else, or a format cannot express the model.
    """
    refuse_unfit(formats, judge.subject)
    refuse_strangers(folder)
    with partial_folder(folder) as partial:
        earlier = Earlier.found(folder, judge.subject, formats, replace, say)
        workshop = Workshop(judge, partial, say)
        outcomes = [workshop.make(format) for format in formats]
        earlier = earlier.without([outcome.format.name for outcome in outcomes if not outcome.path.exists()], folder)
        speed = judge.reference_speed(outcomes)
        weights = _write_companions(partial, judge, folder, _has_weights(outcomes, earlier))
        content = manifest.describe(judge, outcomes, speed, weights, _sums(partial))
        content["artefacts"] = earlier.kept + content["artefacts"]
        publish(partial, folder, [*_passed(outcomes), *COMPANIONS], earlier, content)
    return content


class Workshop:
    """Makes each format once, its fp32 base first."""

    def __init__(self, judge: Judge, folder: Path, say: Say) -> None:
        self.judge, self.folder, self.say = judge, folder, say
        self.outcomes: dict[str, Outcome] = {}

    def make(self, format: Format) -> Outcome:
        """Write and prove one format, once; later calls return the same outcome."""
        if format.name not in self.outcomes:
            self.outcomes[format.name] = self._make(format)
        return self.outcomes[format.name]

    def _make(self, format: Format) -> Outcome:
        path, base = self.folder / format.file, None
        if format.base:
            base = self.make(FORMATS[format.base])
            if base.status == FAILED:
                why = "; ".join(base.reasons)
                return Outcome(format, FAILED, path, reasons=[f"{format.base}, which it is made from, failed ({why})"])
        try:
            self.say(f"{format.name}: writing")
            format.write(self.judge.subject, path, base.path if base else None)
            self.say(f"{format.name}: comparing with the model")
            return self.judge.verdict(format, path)
        except Exception as error:
            if getattr(error, "errno", None) in DISK_FULL:
                raise RunError(f"{format.name}: the disk is full, and {self.folder.parent} is as it was") from error
            # The other formats are worth having; this one's traceback is shown whole, and the command fails.
            self.say(traceback.format_exc())
            remove(path)
            return crashed(format, path, error)


def _write_companions(partial: Path, judge: Judge, folder: Path, has_weights: bool) -> dict[str, Any]:
    """What running and verifying need beside the artefacts: tokenizer, shape, evaluation set, reference weights.

    Returns:
        Name and sha256 of the file with the weights, which is transformers' own where that was exported.
    """
    subject = judge.subject
    subject.tokenizer.save(str(partial / "tokenizer.json"))
    shape = {"name": subject.name, "model": asdict(subject.model.config), "config": subject.entry.get("config", {})}
    (partial / "config.json").write_text(json.dumps(shape, indent=2) + "\n", encoding="utf-8")
    judge.evaluation.save(partial / EVALUATION)
    name = f"{HUGGINGFACE}/{WEIGHTS}" if has_weights else REFERENCE
    if not has_weights:
        write_weights(subject, partial / REFERENCE)
    path = next(place / name for place in (partial, folder) if (place / name).exists())
    return {"file": name, "sha256": sha256(path)}


def _sums(partial: Path) -> dict[str, str]:
    """What graphs are run with: `tinytf verify` looks whether it is still there."""
    return {name: sha256(partial / name) for name in ("tokenizer.json", "config.json")}


def _has_weights(outcomes: Sequence[Outcome], earlier: Earlier) -> bool:
    return HUGGINGFACE in [*_passed(outcomes), *(entry["file"] for entry in earlier.kept)]


def _passed(outcomes: Sequence[Outcome]) -> list[str]:
    """The files to publish; bases that nobody asked for are not among the outcomes and stay behind."""
    return [outcome.format.file for outcome in outcomes if outcome.status != FAILED]
