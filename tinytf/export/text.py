"""Held-out text as token ids: the validation split of the checkpoint's own data, or a file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np

from tinytf.data.prepare import TextSettings, prepare
from tinytf.data.tokenizer import encode
from tinytf.errors import UserError
from tinytf.export.evaluation import Evaluation
from tinytf.export.subject import Subject

ADVICE = "give held-out text with --text FILE"


def held_out_text(subject: Subject, file: Path | None) -> Evaluation:
    """The windows to compare on.

    Raises:
        UserError: where the file cannot be read or encoded, or the validation split is not the one of training.
    """
    if file is None:
        return from_validation_split(subject)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--text {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--text {file}: byte {error.start} is not UTF-8") from error
    try:
        ids = np.array(encode(subject.tokenizer, text), dtype=np.int64)
    except UserError as error:
        raise UserError(f"--text {file}: {error}") from error
    return Evaluation.from_ids(ids, f"file {file.name}", subject.model.config.max_seq_len)


def from_validation_split(subject: Subject) -> Evaluation:
    """Rebuilt, or found in the cache, with the checkpoint's tokenizer."""
    stated = subject.entry.get("config", {}).get("data", {})
    settings = {field.name: stated[field.name] for field in fields(TextSettings) if field.name in stated}
    if "corpus" not in settings:
        raise UserError(f"the checkpoint does not say what text it was trained on: {ADVICE}")
    try:
        prepared = prepare(TextSettings(**settings), subject.tokenizer)
    except UserError as error:
        raise UserError(f"the text it was trained on cannot be had ({error}): {ADVICE}") from error
    trained_on, found = subject.entry.get("data", {}), prepared.fingerprint
    if any(trained_on.get(key) != found[key] for key in ("sha256", "split")):
        raise UserError(
            f"corpus {settings['corpus']} has changed since training, so that its validation part may have been "
            f"trained on: {ADVICE}"
        )
    source = f"validation split of {settings['val_corpus'] or settings['corpus']}"
    return Evaluation.from_ids(prepared.store.split("val"), source, subject.model.config.max_seq_len)
