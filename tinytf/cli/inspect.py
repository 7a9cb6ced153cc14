"""`tinytf inspect`: what a checkpoint is, or in what two differ, without loading their weights."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinytf.cli.config.flags import CommandParser, add_checkpoint_flags, checkpoint_path
from tinytf.errors import UserError
from tinytf.utils.text import flatten, printable, strict, strict_json

Sections = dict[str, dict[str, Any]]

MISSING = "(none)"
LONGEST = 160
"""Characters of a value that are shown whole."""


def parser() -> CommandParser:
    """The command's flags."""
    flags = CommandParser(
        prog="tinytf inspect",
        description="What a checkpoint or a pretrained model is, or in what two checkpoints differ.",
    )
    add_checkpoint_flags(flags)
    flags.add_argument("--diff", metavar="PATH", help="a second checkpoint: print only what differs, old -> new")
    flags.add_argument("--json", action="store_true", help="one JSON object; with --diff, [old, new] a key")
    return flags


def run(argv: list[str]) -> int:
    """Print what a checkpoint is, or in what two differ."""
    args = parser().parse_args(argv)
    if args.ckpt_path and is_base(args.ckpt_path):
        if args.diff is not None:
            raise UserError("--diff compares two checkpoints, and a pretrained model is none")
        found = base_facts(args.ckpt_path)
        print(strict_json(found, indent=2) if args.json else sections_text(found))
        return 0
    found = checkpoint_facts(checkpoint_path(args))
    if args.diff is None:
        print(strict_json(found, indent=2) if args.json else sections_text(found))
        return 0
    other = checkpoint_facts(checkpoint_path(argparse.Namespace(ckpt_path=args.diff, name=args.name)))
    changes = differences(found, other)
    print(strict_json(changes, indent=2) if args.json else difference_text(changes))
    return 0


def checkpoint_facts(path: Path) -> Sections:
    """All that a checkpoint says of itself, as plain JSON types in sections.

    Raises:
        UserError: as [read_checkpoint][tinytf.weights.checkpoint.read_checkpoint].
    """
    from tinytf.weights.checkpoint import read_checkpoint

    content = read_checkpoint(path, mmap=True)
    entry = content["tinytf"]
    provenance = dict(entry.get("provenance") or {})
    code = {"command": provenance.pop("command", None), "git": provenance.pop("git", None)}
    sections = {
        "checkpoint": {
            "file": str(path.resolve()),
            "bytes": path.stat().st_size,
            "format": entry["format"],
            "step": content.get("global_step"),
            **losses(content),
            **{key: entry[key] for key in ("averaged_by",) if key in entry},
            "time": provenance.pop("time", None),
        },
        "model": shape(entry.get("model") or {}),
        "config": entry.get("config") or {},
        **{name: entry[name] for name in ("base", "adapter") if name in entry},
        "data": {**(entry.get("data") or {}), "tokenizer": tokenizer(entry, path)},
        "code": code,
        "environment": {**provenance, "world_size": entry.get("world_size")},
    }
    return {name: strict(section) for name, section in sections.items()}


def is_base(place: str) -> bool:
    """Whether a pretrained model is meant, as ``model.base`` names it: a folder with a config.json, or hf://."""
    return place.startswith("hf://") or os.path.isfile(os.path.join(place, "config.json"))  # noqa: PTH113, PTH118


def base_facts(place: str) -> Sections:
    """What a pretrained model is; of the hub, without fetching its weights. UserError as `open_base`."""
    from tinytf.data.tokenizer import tokenizer_sha256
    from tinytf.weights.base import open_base

    local = "://" not in place
    base = open_base(place, weights=local)
    found = base.tokenizer
    identity = base.identity if local else {"name": base.place, "kind": base.kind, "revision": base.revision}
    sections = {
        "base": identity,
        "model": {"parameters": base.config.parameter_count, "vocab_size": base.config.vocab_size, **base.settings},
        "tokenizer": {
            "kind": type(found.model).__name__,
            "size": found.get_vocab_size(),
            "sha256": tokenizer_sha256(found),
            "chat_template": base.chat_template,
        },
    }
    return {name: strict(section) for name, section in sections.items()}


def losses(content: Mapping[str, Any]) -> dict[str, Any]:
    """The val/loss measured at this checkpoint's step, and the run's best until then; None where it holds none."""
    from tinytf.run.directory import CHECKPOINT

    states = [state for state in (content.get("callbacks") or {}).values() if isinstance(state, Mapping)]
    watching = next((state for state in states if state.get("monitor") == "val/loss"), {})
    at_step: dict[Any, Any] = {}
    best = watching.get("best_k_models")
    for name, score in best.items() if isinstance(best, Mapping) else ():
        match = CHECKPOINT.fullmatch(Path(name).name) if isinstance(name, str) else None
        if match:
            at_step[int(match[1])] = score
    found = {"val/loss": at_step.get(content["global_step"]), "best val/loss": watching.get("best_model_score")}
    return {name: as_number(score) for name, score in found.items()}


def as_number(score: Any) -> float | None:
    """A number or a tensor of one element; None for anything else that a file may have there."""
    try:
        return float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def shape(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model's settings, those left to their default filled in, with its parameters counted."""
    from tinytf.model import TransformerConfig

    try:
        config = TransformerConfig.from_mapping(model)
    except (TypeError, ValueError) as error:
        raise UserError(f"the checkpoint's model entry does not describe a model ({error})") from error
    return {"parameters": config.parameter_count, **model, "n_kv_heads": config.kv_heads, "d_ff": config.ff_dim}


def tokenizer(entry: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Kind, size and checksum of the tokenizer in a ``tinytf`` entry."""
    from tinytf.data.tokenizer import is_by_character, tokenizer_from_text, tokenizer_sha256

    found = tokenizer_from_text(str(entry.get("tokenizer")), f"in checkpoint {path}")
    kind = "char" if is_by_character(found) else type(found.model).__name__
    return {"kind": kind, "size": found.get_vocab_size(), "sha256": tokenizer_sha256(found)}


def differences(old: Sections, new: Sections) -> dict[str, dict[str, list[Any]]]:
    """What differs, as ``{section: {dotted key: [old, new]}}``. Where the files lie and how large they are does not."""
    changes: dict[str, dict[str, list[Any]]] = {}
    for section in dict.fromkeys([*old, *new]):
        before, after = (dict(flatten(side.get(section, {}))) for side in (old, new))
        keys = [*before, *(key for key in after if key not in before)]
        changes[section] = {
            key: [before.get(key), after.get(key)]
            for key in keys
            if before.get(key) != after.get(key)
            and (section, key) not in (("checkpoint", "file"), ("checkpoint", "bytes"))
        }
    return {section: found for section, found in changes.items() if found}


def sections_text(sections: Sections) -> str:
    """Sections of nested content as aligned lines."""
    lines = []
    for section, content in sections.items():
        leaves = list(flatten(content))
        width = max((len(printable(key)) for key, _ in leaves), default=0)
        lines += ["", section, *(f"  {printable(key):<{width}}  {shown(value)}" for key, value in leaves)]
    return "\n".join(lines[1:])


def difference_text(changes: Mapping[str, Mapping[str, list[Any]]]) -> str:
    """What differs, a line a key, old value first."""
    lines = []
    for section, found in changes.items():
        lines += ["", section]
        lines += [f"  {printable(key)}: {shown(old)} -> {shown(new)}" for key, (old, new) in found.items()]
    return "\n".join(lines[1:]) or "no difference"


def shown(value: Any) -> str:
    """A value on one line; a long one by its size and the beginning of its sha256."""
    if value is None:
        return MISSING
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if "\n" not in text and len(text) <= LONGEST:
        return printable(text)
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]
    return f"({len(text.splitlines())} lines, {len(text)} characters, sha256 {digest}…)"
