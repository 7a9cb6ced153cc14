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


def take_base(config: Any, given: Arguments, usual: Any, *, weights: bool) -> BaseModel | None:
    """Open the base model that a config names, and write its sizes and tokenizer into the config.

    Args:
        config: parsed; the sections ``model`` and ``data`` are changed.
        given: the flags and files, which say what the user set: what is a default gives way to the base.
        usual: the parser's defaults.
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
    entries = base.tokenizer.get_vocab_size()
    # The values that stand in the config.yaml of such a run repeat it.
    tokenizer = {"vocab_size": (entries, f"has {entries:,} entries"),
                 "bpe_sample_bytes": (usual.data.bpe_sample_bytes, "is not trained again")}  # fmt: skip
    for key, (value, why) in tokenizer.items():
        if f"data.{key}" in given.keys and config.data[key] != value:
            raise ConfigError(
                f"data.{key}",
                f"data.{key} is {config.data[key]}, but the tokenizer of model.base {base.place} {why}: leave it out",
            )
    config.data.tokenizer, config.data.vocab_size = OF_BASE, entries
    return base


def is_given(key: str, keys: Collection[str]) -> bool:
    """Whether the user set a key, or one inside of it."""
    return any(each == key or each.startswith(f"{key}.") for each in keys)
