"""What is wrong with the values of a config that was parsed: found together, before anything is built from them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import instantiate_class

from tinytf.cli.config.errors import place, plain
from tinytf.data.module import TextDataModule
from tinytf.errors import UserError
from tinytf.export.formats import choose
from tinytf.model import TransformerConfig
from tinytf.model.config import ShapeError
from tinytf.run.callbacks.build import check
from tinytf.run.checkpoint_settings import CheckpointSettings
from tinytf.run.loggers.build import require_packages
from tinytf.training.trainer import require_steps

STEPS = ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches")


def problems_of(command: str, config: Any, actions: Iterable[Any], decide: Callable[[Any], None]) -> list[str]:
    """One line each.

    Args:
        command: fit trains, and needs an optimizer; the others do not.
        config: of that command; `decide` writes into it.
        actions: the parser's.
        decide: raises UserError where values contradict each other.
    """
    if nulls := list(empty(config, actions)):
        return nulls
    checks: list[Callable[[], object]] = [
        lambda: shape(config.model),
        lambda: TextDataModule(**config.data),
        lambda: CheckpointSettings(**config.checkpoint),
        lambda: instantiate_class((), config.model.schedule) if "schedule" in config.model else None,
        lambda: require_steps(**{key: config.trainer[key] for key in STEPS}),
        lambda: ranges(config),
        lambda: device(config.trainer.accelerator),
        lambda: check(config.tracking),
        lambda: decide(config),
    ]
    if command == "fit":
        checks += [
            lambda: optimizer(config.model.optimizer),
            lambda: folder(config.name, Path(config.checkpoint.dir)),
            lambda: require_packages(config.tracking),
            lambda: formats(config.export),
        ]
    return [problem for check in checks for problem in told_by(check)]


def told_by(check: Callable[[], object]) -> tuple[str, ...]:
    """The problems that a check raises; none where it passes."""
    try:
        check()
    except UserError as error:
        return error.problems
    return ()


def empty(config: Any, actions: Iterable[Any]) -> Iterator[str]:
    """Each null where there must be a value: the parser was seen to let it pass."""
    for action in actions:
        kind = getattr(action, "_typehint", None)
        if kind is None or action.dest not in config or config[action.dest] is not None or takes_null(kind):
            continue
        if action.default is not None:
            yield f"{action.dest}: expected {named(kind)}, got null; leave it out for its default"


def takes_null(kind: Any) -> bool:
    """Whether null is a value of a type."""
    if get_origin(kind) in (Union, type(int | None)):
        return any(map(takes_null, get_args(kind)))
    return kind in (type(None), Any)


def named(kind: Any) -> str:
    """A type as a message calls it."""
    if get_origin(kind) is Literal:
        return plain(f"Literal[{', '.join(map(str, get_args(kind)))}]")
    return plain(str(kind)) if isinstance(kind, type) else "a value"


def shape(model: Any) -> None:
    """Refuse a model's numbers that do not fit together."""
    try:
        TransformerConfig(1, **{f.name: model[f.name] for f in fields(TransformerConfig) if f.name != "vocab_size"})
    except ShapeError as error:
        raise UserError(*(f"model.{problem}" for problem in error.problems)) from None


def optimizer(given: Any) -> None:
    """Make one for a matrix and a vector, in groups like the model's."""
    groups = [
        {"name": name, "params": [torch.nn.Parameter(torch.zeros(size))]}
        for name, size in (("hidden", (2, 2)), ("norm", (2,)))
    ]
    try:
        instantiate_class((groups,), given)
    except (ValueError, TypeError, RuntimeError) as error:
        kind = given.class_path.rpartition(".")[2]
        raise UserError(f"model.optimizer: {kind} cannot be made: {' '.join(str(error).split())}") from None


def ranges(config: Any) -> None:
    """Numbers that Lightning was seen to take as they come, or to end in a traceback for."""
    least = {"trainer.min_steps": 0, "trainer.gradient_clip_val": 0, "trainer.num_sanity_val_steps": -1}
    values = {key: config[key] for key in least if config[key] is not None}
    wrong = [
        f"{key} is {value}, but must be at least {least[key]}" for key, value in values.items() if value < least[key]
    ]
    if not 0 <= config.seed_everything < 2**32:
        wrong.append(f"seed_everything is {config.seed_everything}, but must be at least 0 and below 2**32")
    if wrong:
        raise UserError(*wrong)


def folder(name: str, root: Path) -> None:
    """Refuse a place that no run can be written to."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UserError(f"name {name!r}: the run's folder is called so, and it is no name of a folder; give another")
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"checkpoint.dir {root}: {there} is a file, and runs need a folder; give another folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"checkpoint.dir {root}: {there} cannot be written to; give another folder")


def formats(export: Any) -> None:
    """Refuse formats to export at the end that there are none of."""
    if not export.at_end:
        return
    try:
        choose(export.formats)
    except UserError as error:
        raise UserError(*(f"export.formats: {problem}" for problem in error.problems)) from None


def device(name: Any) -> None:
    """Refuse hardware that is not here, by the name that asks for it."""
    if not isinstance(name, str) or name == "auto":
        return
    known = AcceleratorRegistry.available_accelerators()
    if name != "gpu" and name not in known:
        raise UserError(f"trainer.accelerator: expected auto or gpu or {' or '.join(sorted(known))}, got {name}")
    asked = ("cuda", "mps") if name == "gpu" else (name,)
    if not any(AcceleratorRegistry[each]["accelerator"].is_available() for each in asked):
        raise UserError(
            f"trainer.accelerator {name}: this machine has none that PyTorch {torch.__version__} can use; "
            "leave it at auto, or give cpu"
        )


def placed(lines: Iterable[str], configs: list[str], flags: Iterable[str], known: Iterable[str]) -> list[str]:
    """Each line with the file and line that gave, last of all, a key it speaks of; with none where a flag did."""
    by_flag = {flag.lstrip("-").partition("=")[0] for flag in flags if flag.startswith("--")}
    found = []
    for line in lines:
        keys = keys_in(line, set(known))
        places = [at for path in configs for key in keys if (at := place(key, [path]))]
        found.append(f"{places[-1]}{line}" if places and not by_flag & set(keys) else line)
    return found


def keys_in(line: str, known: set[str]) -> list[str]:
    """The keys that a message names; after the first, it leaves out the section where that is the same."""
    dotted = re.findall(r"\b[a-z_]+(?:\.\w+)+", line)
    section = dotted[0].rpartition(".")[0] if dotted else ""
    bare = [f"{section}.{word}" for word in re.findall(r"\w+", line)]
    return dotted + [key for key in bare if key in known and key not in dotted]
