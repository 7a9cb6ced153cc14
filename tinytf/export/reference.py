"""The model a bundle is verified against later: the checkpoint where it is at hand, else the bundle's own weights."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from tinytf.data.tokenizer import tokenizer_from_file
from tinytf.errors import UserError
from tinytf.export.subject import Subject, sha256
from tinytf.model import Transformer, TransformerConfig
from tinytf.run.checkpoint import MODEL_PREFIX


def find(folder: Path, manifest: dict[str, Any], ckpt_path: Path | None) -> tuple[Subject, str]:
    """The model of a bundle and where it was found, in words.

    Args:
        ckpt_path: the checkpoint to compare with; None looks where ``export.json`` says it was.

    Raises:
        UserError: where the given checkpoint is another, or neither checkpoint nor weights are there unchanged.
    """
    wanted = manifest["checkpoint"].get("sha256")
    if ckpt_path is not None:
        if _sum_of(ckpt_path) != wanted:
            raise UserError(f"--ckpt_path {ckpt_path}: it is not the checkpoint that {folder} was exported from")
        return Subject.from_checkpoint(ckpt_path), f"the checkpoint {ckpt_path}"
    recorded = Path(manifest["checkpoint"].get("path", ""))
    if _is_file(recorded) and sha256(recorded) == wanted:
        return Subject.from_checkpoint(recorded), f"the checkpoint {recorded}"
    return from_weights(folder, manifest), f"the weights in {manifest['reference']['file']}, the checkpoint being gone"


def _sum_of(ckpt_path: Path) -> str:
    try:
        return sha256(ckpt_path)
    except OSError as error:
        raise UserError(f"--ckpt_path {ckpt_path}: {error.strerror}; give a checkpoint file") from error


def _is_file(recorded: Path) -> bool:
    """Whether the checkpoint is there to be read; on a machine that the bundle was copied to, others own its place."""
    return os.access(recorded, os.R_OK) and recorded.is_file()


def from_weights(folder: Path, manifest: dict[str, Any]) -> Subject:
    """The model from the safetensors file of the bundle.

    Raises:
        UserError: where it is missing or changed, or safetensors is not installed.
    """
    path = folder / manifest["reference"]["file"]
    if not path.is_file():
        raise UserError(f"{folder}: {path.name} is gone, and so is the checkpoint: give --ckpt_path to verify against")
    if sha256(path) != manifest["reference"]["sha256"]:
        raise UserError(f"{path}: it is not the file that was exported, and the checkpoint is gone: give --ckpt_path")
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError("verifying without the checkpoint needs safetensors: pip install 'tinytf[export]'") from None
    names = {field.name for field in fields(TransformerConfig)}
    model = Transformer(TransformerConfig(**{key: value for key, value in manifest["model"].items() if key in names}))
    model.load_state_dict({key.removeprefix(MODEL_PREFIX): value for key, value in load_file(path).items()})
    tokenizer = tokenizer_from_file(folder / "tokenizer.json")
    return Subject(model.eval(), tokenizer, manifest["name"], manifest["checkpoint"])
