"""Every key of `tinytf fit` has a help line: what it counts, what it does, and what it is where nobody sets it."""

from __future__ import annotations

import argparse
import re
from typing import Any

import pytest

from tinytf.cli.config.keys import HELP
from tinytf.cli.config.parser import parser_of

UNITS = re.split(
    r"\s+",
    """steps step tokens token features batches batch fraction share probability norm devices machines windows heads
    blocks bytes checkpoints validation validations entries processes seed epsilon base factor times width term""",
)


def keys() -> list[Any]:
    actions = [action for action in parser_of("fit")._actions if action.option_strings]
    return [a for a in actions if not a.dest.endswith("help") and a.dest not in ("print_config", "config")]


@pytest.fixture(scope="module", name="settings")
def all_keys() -> list[Any]:
    return [action for action in keys() if hasattr(action, "_typehint")]


def test_there_are_all_of_them(settings: list[Any]) -> None:
    assert {"trainer.max_steps", "model.optimizer", "data.corpus", "tracking.samples.prompts"} <= {
        action.dest for action in settings
    }
    assert len(settings) > 70


def test_each_says_what_it_does(settings: list[Any]) -> None:
    for action in settings:
        assert action.help, action.dest
        assert action.help is not argparse.SUPPRESS, action.dest
        assert len(action.help.split()) >= 3, f"{action.dest}: {action.help}"
        for markup in ("``", ":class:", ":paramref:", ":func:", "epoch", "Default:"):
            assert markup not in action.help, f"{action.dest}: {action.help}"


def test_each_number_says_what_it_counts(settings: list[Any]) -> None:
    for action in settings:
        if isinstance(action.default, (int, float)) and not isinstance(action.default, bool):
            words = set(re.findall(r"[a-z]+", action.help.lower()))
            assert words & set(UNITS), f"{action.dest}: {action.help}"


def test_each_that_may_be_null_says_what_that_means(settings: list[Any]) -> None:
    for action in settings:
        numeric = {int, float} & set(getattr(action._typehint, "__args__", ()))
        if action.default is None and numeric:
            assert re.search(r"\b(null|unset|none)\b", action.help), f"{action.dest}: {action.help}"


def test_the_help_shows_the_default_beside_it(settings: list[Any]) -> None:
    text = " ".join(parser_of("fit").format_help().split())
    for action in settings:
        assert action.option_strings[0] in text
    assert "optimizer steps of the whole run. (type: int, default: 1000)" in text.replace("Optimizer", "optimizer")


def test_no_line_is_about_a_key_that_is_gone() -> None:
    known = {action.dest for name in ("fit", "validate", "test", "predict") for action in parser_of(name)._actions}
    assert set(HELP) <= known
