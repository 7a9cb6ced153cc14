"""Making a bundle: every artefact is written aside, proven, and only then takes its name."""

from __future__ import annotations

import json
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinytf.errors import UserError
from tinytf.export import manifest
from tinytf.export.evaluation import FILE as EVALUATION
from tinytf.export.formats import FORMATS, Format
from tinytf.export.huggingface import WEIGHTS, write_weights
from tinytf.export.judge import FAILED, Judge, Outcome
from tinytf.export.runner import eager, reference_precision
from tinytf.export.speed import measure
from tinytf.export.subject import Subject, sha256

PARTIAL = ".partial-"
REFERENCE = "reference.safetensors"

Say = Callable[[str], None]


def refuse_unfit(formats: Sequence[Format], subject: Subject) -> None:
    """Raise UserError where a format, or the one it is made from, cannot express this model; before any is written."""
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
    kept = _make_room(folder, judge.subject, formats, replace, say)
    with _partial(folder) as partial:
        workshop = Workshop(judge, partial, say)
        outcomes = [workshop.make(format) for format in formats]
        say("measuring the reference")
        with reference_precision(judge.threads):
            passage = judge.evaluation.passage(0, 1024)
            speed = measure(eager(judge.subject.model), passage, judge.subject.model.config.max_seq_len)
        made = {outcome.format.name for outcome in outcomes if outcome.status != FAILED}
        has_weights = "huggingface" in made | {entry["name"] for entry in kept}
        weights = _write_companions(partial, judge, folder, has_weights)
        content = manifest.describe(judge, outcomes, speed, weights)
        content["artefacts"] = kept + content["artefacts"]
        _publish(partial, folder, outcomes)
    manifest.write(folder, content)
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
                return Outcome(format, FAILED, path, reasons=[f"{format.base}, which it is made from, failed"])
        try:
            self.say(f"{format.name}: writing")
            format.write(self.judge.subject, path, base.path if base else None)
            self.say(f"{format.name}: comparing with the model")
            return self.judge.verdict(format, path)
        except Exception as error:
            # The other formats are worth having; this one's traceback is shown whole, and the command fails.
            self.say(traceback.format_exc())
            return Outcome(
                format, FAILED, path, reasons=[f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"]
            )


def _make_room(
    folder: Path, subject: Subject, formats: Sequence[Format], replace: bool, say: Say
) -> list[dict[str, Any]]:
    """Take away what is made anew; returns the entries of an earlier export of the same checkpoint that stay."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: it is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / manifest.NAME).exists():
        strangers = [path.name for path in folder.iterdir() if not path.name.startswith(PARTIAL)]
        if strangers:
            raise UserError(
                f"--output_dir {folder}: it holds {strangers[0]} and no {manifest.NAME}, so it is not an export; "
                "give an empty or a new folder"
            )
        return []
    old = manifest.read(folder)
    same = old["checkpoint"].get("sha256") == subject.source.get("sha256")
    if not same and not replace:
        raise UserError(
            f"--output_dir {folder}: it holds the export of another checkpoint "
            f"({old['checkpoint'].get('path')}); give another folder, or delete it"
        )
    if not same:
        say(f"replacing the export of {old['checkpoint'].get('path')} (step {old['checkpoint'].get('step')})")
    redone = {format.name for format in formats} if same else {entry["name"] for entry in old["artefacts"]}
    (folder / manifest.NAME).unlink()
    for entry in old["artefacts"]:
        if entry["name"] in redone:
            remove(folder / entry["file"])
    return [entry for entry in old["artefacts"] if entry["name"] not in redone]


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """A folder beside the artefacts, so that publishing is a rename; taken away however the work ends."""
    for leftover in folder.glob(f"{PARTIAL}*"):
        remove(leftover)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        yield partial
    finally:
        remove(partial)


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
    name = f"huggingface/{WEIGHTS}" if has_weights else REFERENCE
    if not has_weights:
        write_weights(subject, partial / REFERENCE)
    path = next(place / name for place in (partial, folder) if (place / name).exists())
    return {"file": name, "sha256": sha256(path)}


def _publish(partial: Path, folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Rename what passed into place, and the companions with it; bases that nobody asked for stay behind."""
    remove(folder / REFERENCE)
    passed = [outcome.format.file for outcome in outcomes if outcome.status != FAILED]
    for name in [*passed, "tokenizer.json", "config.json", EVALUATION, REFERENCE]:
        if (partial / name).exists():
            remove(folder / name) if (folder / name).is_dir() else None
            (partial / name).replace(folder / name)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
