"""What the commands outside Lightning's command line share: a parser that fails in one line, and --ckpt_path."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tinytf.errors import UserError
from tinytf.utils.files import shorten
from tinytf.utils.machine import usable_cores


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors, and that names the nearest flag to one it does not know."""

    def __init__(self, **settings: Any) -> None:
        # An abbreviation that works today is an error, or another flag, once a flag is added.
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's; UserError where it would exit."""
        # Before argparse's own checks, or the mistyped --ckpt_path would be reported as a missing one.
        for argument in args:
            flag = argument.partition("=")[0]
            if re.fullmatch(r"--\w[\w.-]*", flag) and flag not in self._option_string_actions:
                raise UserError(f"unknown flag {flag}{self._nearest(flag)}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        hint = ""
        if message.endswith("expected one argument"):
            hint = " (a value that starts with a dash is written --flag=VALUE)"
        raise UserError(f"{message.removeprefix('argument ')}{hint}; see {self.prog} --help")

    def _nearest(self, flag: str) -> str:
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        return f": did you mean {near[0]}?" if near else f"; see {self.prog} --help"


def integer(text: str) -> int:
    """An integer, as a flag's type: decimal digits or, as in a config, 1e3."""
    # Not by int(), which takes 1_000 and the digits of all scripts.
    if re.fullmatch(r"[-+]?[0-9]{1,30}", text):
        return int(text)
    if re.fullmatch(r"[-+]?[0-9]{1,15}(\.[0-9]{1,15})?[eE]\+?[0-9]{1,2}", text):
        value = float(text)
        if value.is_integer() and abs(value) < 2**53:  # Above it, floats skip integers.
            return int(value)
    raise argparse.ArgumentTypeError(f"{shorten(text, 40)!r} is not an integer")


def number(text: str) -> float:
    """A finite decimal number, as a flag's type."""
    if not re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text) or not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"{shorten(text, 40)!r} is not a number")
    return float(text)


def positive(text: str) -> int:
    """An integer of at least 1, as a flag's type."""
    value = integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small: it must be at least 1")
    if value >= 2**53:
        raise argparse.ArgumentTypeError(f"{value} is too large: it must be below 2**53")
    return value


def threads(text: str) -> int:
    """A number of threads, as a flag's type: more than a machine can start end the process inside torch."""
    value, most = positive(text), max(64, 4 * usable_cores())
    if value > most:
        raise argparse.ArgumentTypeError(f"{value} is too large: it must be at most {most} on this machine")
    return value


def above_zero(text: str) -> float:
    """A number above 0, as a flag's type."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    if not 1e-9 <= value <= 1e9:  # What is computed with others is 0 or infinite.
        raise argparse.ArgumentTypeError(f"{text} must be from 1e-9 to 1e9")
    return value


def share(text: str) -> float:
    """A number above 0 and at most 1, as a flag's type."""
    value = above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} must be at most 1")
    return value


def add_checkpoint_flags(parser: CommandParser, *, required: bool = True) -> None:
    """--ckpt_path and --name, as every command that reads a checkpoint has them."""
    parser.add_argument(
        "--ckpt_path",
        required=required,
        metavar="PATH",
        help="a checkpoint, a run's folder (its best), or best or last: that of the newest run",
    )
    parser.add_argument("--name", help="with best or last: the run's name, if not the newest run")


def add_base_flag(parser: CommandParser) -> None:
    """--base, of the commands that compute with a checkpoint."""
    parser.add_argument(
        "--base",
        metavar="PATH",
        help="of a checkpoint with an adapter: its base model (default: what its run named, if it is a run of yours)",
    )


def checkpoint_path(args: argparse.Namespace) -> Path:
    """The file that --ckpt_path means; UserError if there is none."""
    from tinytf.run.directory import resolve_checkpoint

    return resolve_checkpoint(args.ckpt_path, name=args.name)
