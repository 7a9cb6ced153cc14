"""What is wrong with the values of a config that was parsed: found together, before anything is built from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import instantiate_class

from tinytf.checkpoint.settings import CheckpointSettings
from tinytf.commands.messages import place, plain
from tinytf.data.module import TextDataModule
from tinytf.errors import UserError
from tinytf.export.formats import choose
from tinytf.model import TransformerConfig
from tinytf.model.config import ShapeError
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
        lambda: device(config.trainer.accelerator),
        lambda: choose(config.export.formats) if config.export.at_end else None,
        lambda: decide(config),
    ]
    if command == "fit":
        checks.append(lambda: optimizer(config.model.optimizer))
    return [problem for check in checks for problem in told_by(check)]


def told_by(check: Callable[[], object]) -> tuple[str, ...]:
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
    if get_origin(kind) in (Union, type(int | None)):
        return any(map(takes_null, get_args(kind)))
    return kind in (type(None), Any)


def named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return plain(f"Literal[{', '.join(map(str, get_args(kind)))}]")
    return plain(str(kind)) if isinstance(kind, type) else "a value"


def shape(model: Any) -> None:
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


def placed(lines: Iterable[str], configs: list[str], flags: Iterable[str]) -> list[str]:
    """Each line with the file and line that gave the key it begins with, where no flag did."""
    by_flag = {flag.lstrip("-").partition("=")[0] for flag in flags if flag.startswith("--")}
    found = []
    for line in lines:
        key = re.match(r"\w+(?:\.\w+)+", line)
        found.append(f"{place(key[0], configs)}{line}" if key and key[0] not in by_flag else line)
    return found
