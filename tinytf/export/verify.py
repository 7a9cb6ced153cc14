"""Measure a bundle again: the same checks, later or elsewhere, with nothing but the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinytf.data.tokenizer import tokenizer_from_file
from tinytf.errors import UserError
from tinytf.export import manifest
from tinytf.export.bundle import Say, as_trained
from tinytf.export.formats import FORMATS
from tinytf.export.formats.huggingface import MAX_JSON
from tinytf.export.parity.cases import Evaluation
from tinytf.export.parity.check import FAILED, NOT_VERIFIED, CheckResult, ParityCheck, failed_result
from tinytf.export.parity.thresholds import THRESHOLDS, with_overrides
from tinytf.model import Transformer, TransformerConfig
from tinytf.run.directory import ROOT, is_own
from tinytf.utils.files import open_user_file, read_text, sha256_of
from tinytf.weights.checkpoint import MODEL_PREFIX, LoadedModel, load_model
from tinytf.weights.huggingface import CHAT_TEMPLATE

LONGEST = 2**17
"""Tokens. Tables of positions and masks grow with a number that a stranger may state; no preset has over 2**12."""


def verify(
    folder: Path, ckpt_path: Path | None, thresholds: Sequence[str], threads: int, say: Say, *, trust: bool = False,
    base: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The manifest as it would be written today; nothing is written.

    Args:
        folder: the bundle; nothing outside of it is read, but for ``ckpt_path``.
        ckpt_path: the checkpoint to compare with; None means the weights in the bundle.
        thresholds: settings in place of those of the export.
        threads: CPU threads.
        say: called with each line of progress.
        base: of a checkpoint of an adapter, its base model; None is the one that a run of the user's names.
        trust: open formats whose files can run code; if not, they are "not verified".

    Raises:
        UserError: if the folder is not an export, or there is nothing to compare it with.
    """
    stated = manifest.read(folder)
    for name, digest in stated["runtime_files"].items():
        _require_unchanged(folder / name, digest)
    loaded, source = _reference_model(folder, stated, ckpt_path, base, say)
    say(f"comparing with {source}")
    evaluation = Evaluation.load(folder / manifest.EVALUATION, stated["evaluation"]["source"], loaded.model.config)
    if evaluation.sha256 != stated["evaluation"]["sha256"]:
        raise UserError(f"{folder / manifest.EVALUATION}: it is not the evaluation set that was exported")
    limits = THRESHOLDS | stated["thresholds"]
    check = ParityCheck.of(loaded, evaluation, with_overrides(thresholds, limits), threads)
    results = []
    for entry in stated["artifacts"]:
        # An artifact that an earlier export left passed under thresholds of its own.
        own = with_overrides(thresholds, limits | entry["thresholds"])
        results.append(_check_again(replace(check, thresholds=own), folder, entry, say, trust))
    reference = {key: stated["reference"][key] for key in ("file", "sha256")}
    content = manifest.describe(check, results, reference, stated["runtime_files"])
    said = {key: stated[key] for key in ("name", "checkpoint", "texts", "skipped") if key in stated}
    return content | said | {"verified_against": source}


def _check_again(check: ParityCheck, folder: Path, entry: dict[str, Any], say: Say, trust: bool) -> CheckResult:
    format = FORMATS[entry["name"]]
    path = folder / format.file
    changed = manifest.changes(folder, entry)
    if changed:
        return CheckResult(format, FAILED, path, reasons=changed)
    if format.runs_code and not trust:
        reason = f"opening {format.file} can run code that is in it; if you trust who made it, give --trust"
        return CheckResult(format, NOT_VERIFIED, path, reasons=[reason])
    say(f"{format.name}: comparing with the model")
    try:
        return check.run(format, path)
    except Exception as error:
        # One artifact that its runtime does not load is no reason to leave the others unmeasured. Its row says why:
        # what a library raises at a stranger's file is no bug of ours, whose traceback would be worth a page.
        return failed_result(format, path, error)


def _reference_model(
    folder: Path, stated: dict[str, Any], ckpt_path: Path | None, base: str | None, say: Say
) -> tuple[LoadedModel, str]:
    """The model of a bundle, and in words where it is from."""
    if ckpt_path is None:
        return _model_from_weights(folder, stated), f"the weights in {stated['reference']['file']}"
    open_user_file(ckpt_path, what="--ckpt_path").close()  # A pipe or a device has no end to hash to.
    digest = sha256_of(ckpt_path)
    if digest != stated["checkpoint"]["sha256"]:
        raise UserError(f"--ckpt_path {ckpt_path}: it is not the checkpoint that {folder} was exported from")
    loaded = as_trained(load_model(ckpt_path, base, own=is_own(ckpt_path, ROOT)), say)
    return loaded, f"the checkpoint {ckpt_path}"


def _model_from_weights(folder: Path, stated: dict[str, Any]) -> LoadedModel:
    path = folder / stated["reference"]["file"]
    if not path.is_file():
        raise UserError(f"{path} is gone: give --ckpt_path, the checkpoint to verify against")
    _require_unchanged(path, stated["reference"]["sha256"], "; or give --ckpt_path, the checkpoint")
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError("verifying without --ckpt_path needs safetensors: pip install 'tinytf[export]'") from None
    try:
        config = TransformerConfig.from_mapping(stated["model"])
        if config.max_seq_len > LONGEST:
            raise ValueError(f"max_seq_len {config.max_seq_len} is over {LONGEST}, the most that verify compares")
        # What is stated is counted before it is built: a million layers would fill memory.
        weights = {key.removeprefix(MODEL_PREFIX): value for key, value in load_file(path).items()}
        values = sum(weight.numel() for weight in weights.values())
        if config.n_layers > len(weights) or config.parameter_count != values:
            raise ValueError(f"it holds {values:,} values, and the model has {config.parameter_count:,}")
        model = Transformer(config)
        model.load_state_dict(weights)
    except Exception as error:  # Each library has its own error for a file of another kind or size.
        raise UserError(f"{path}: it is not the model of export.json ({' '.join(str(error).split())})") from error
    entry = {}
    if CHAT_TEMPLATE in stated["runtime_files"]:
        entry["chat_template"] = read_text(folder / CHAT_TEMPLATE, what="chat template", limit=MAX_JSON)
    return LoadedModel(model.eval(), tokenizer_from_file(folder / "tokenizer.json"), entry)


def _require_unchanged(path: Path, digest: Any, hint: str = "") -> None:
    if not path.is_file() or sha256_of(path) != digest:
        raise UserError(f"{path}: it is not the file that was exported; export again{hint}")
