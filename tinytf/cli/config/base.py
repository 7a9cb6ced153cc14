"""What a config takes over from its base model: sizes and tokenizer, written into it, so that it is complete."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from tinytf.cli.config.files import Arguments
from tinytf.cli.config.keys import ConfigError
from tinytf.data.config import OF_BASE
from tinytf.errors import UserError
from tinytf.weights.base import BaseModel, open_base


def take_base(config: Any, given: Arguments, *, weights: bool) -> BaseModel | None:
    """Open the base model that a config names, and write its sizes and tokenizer into the config.

    Args:
        config: parsed; the sections ``model`` and ``data`` are changed.
        given: the flags and files, which say what the user set: what is a default gives way to the base.
        weights: look at the weights too, and fetch them from the hub.

    Raises:
        UserError: naming each setting of the user's that contradicts the base.
    """
    if config.model.base is None:
        if config.data.tokenizer == OF_BASE:
            raise ConfigError(
                "data.tokenizer", f"data.tokenizer {OF_BASE}: it is that of model.base, which is not given"
            )
        return None
    if config.data.tokenizer != OF_BASE and "data.tokenizer" in given.keys:
        raise ConfigError(
            "data.tokenizer",
            f"data.tokenizer is {config.data.tokenizer}, but model.base has one of its own: leave it out",
        )
    base = open_base(config.model.base, weights=weights)
    stated = {key: config.model[key] for key in base.settings if is_given(f"model.{key}", given.keys)}
    try:
        resolved = base.config_with(stated)
    except UserError as error:
        raise UserError(*(given.location(each.split()[0]) + each for each in error.problems)) from None
    for key, value in asdict(resolved).items():
        if key in base.settings:
            config.model[key] = value
    config.data.tokenizer = OF_BASE
    return base


def is_given(key: str, keys: Collection[str]) -> bool:
    """Whether the user set a key, or one inside of it."""
    return any(each == key or each.startswith(f"{key}.") for each in keys)
