"""The configs that come with tinytf, by name: `--config base` works in every folder."""

from __future__ import annotations

import difflib
import logging
import re
from pathlib import Path

import tinytf
from tinytf.errors import UserError

NAME = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
"""What may be a shipped config's name. A path has a suffix; `./base` is always a path."""

log = logging.getLogger(__name__)


def folder() -> Path:
    """Where the shipped configs lie: in an installed package, else beside it in a checkout."""
    package = Path(tinytf.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """The shipped configs, such as ``base`` and ``loggers/wandb``."""
    root = folder()
    return sorted(str(path.relative_to(root).with_suffix("").as_posix()) for path in root.rglob("*.yaml"))


def with_paths(argv: list[str]) -> list[str]:
    """The arguments, each shipped config's name after ``--config`` or ``-c`` turned into its path.

    Raises:
        UserError: where a name is neither a file nor a shipped config.
    """
    found, follows = [], False
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if follows:
            argument = path_of(argument)
        elif equals and flag in ("--config", "-c"):
            argument = f"{flag}={path_of(value)}"
        follows = not follows and argument in ("--config", "-c")
        found.append(argument)
    return found


def path_of(given: str) -> str:
    """The path of a config: a file in reach wins, because a path has always meant that; that is said."""
    if not NAME.fullmatch(given):
        return given
    shipped = folder() / f"{given}.yaml"
    if Path(given).is_file():
        if shipped.is_file():
            log.info("--config %s: the file here, not the config of that name that comes with tinytf", given)
        return given
    if shipped.is_file():
        return str(shipped)
    if Path(given).is_dir():  # Whoever opens it says so.
        return given
    near = difflib.get_close_matches(given, names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
    raise UserError(f"--config {given}: there is no such file, and no such config comes with tinytf; {hint}")
