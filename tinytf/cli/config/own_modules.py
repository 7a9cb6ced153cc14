"""Classes and functions of the user's own: found next to the config file that names them, or in the working folder."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinytf.cli.config.files import Arguments
from tinytf.errors import UserError

DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")

SECTIONS = ("model", "trainer")
"""What may name a class."""


def find_own_modules(given: Arguments) -> None:
    """Make importable what the command line and its config files name; what a checkpoint names stays as it is.

    The folder comes last on sys.path, so that no file in it can stand in for a package that is installed. Only what may
    name a class makes it importable: the name of a checkpoint in a stranger's folder does not.
    """
    words: list[str] = []
    key = ""
    for flag in given.flags:
        key, _, value = flag.partition("=") if flag.startswith("--") else (key, "", flag)
        if key.removeprefix("--").startswith(SECTIONS):
            words.append(value)
    words += [text for file in given.files for key, text in texts(file.content) if key.startswith(SECTIONS)]
    folders = [*(Path(file.path).resolve().parent for file in given.files), Path.cwd()]
    for module in {dotted.partition(".")[0] for word in words for dotted in DOTTED.findall(word)}:
        for folder in folders:
            # Not by Path.is_file, which raises at a name that is too long, as a word of any text may be.
            is_there = any(map(os.path.isfile, (folder / f"{module}.py", folder / module / "__init__.py")))
            if is_there and not is_importable(module):
                sys.path.append(str(folder))


def refuse_missing_modules(config: Mapping[str, Any], ckpt: Path, wrong: str) -> None:
    """Say it of a checkpoint's class that no package has: the user's word alone makes a folder's modules importable.

    Args:
        config: the checkpoint's.
        ckpt: its file, for the message.
        wrong: the key that the parser refused; a text elsewhere, such as a file's name, is not to blame.
    """
    for key, text in texts({section: config[section] for section in SECTIONS}):
        if key.startswith(wrong) and DOTTED.fullmatch(text) and not is_importable(text.partition(".")[0]):
            raise UserError(
                f"checkpoint {ckpt}: its {key.partition('.class_path')[0]} is {text}, which no installed package has; "
                "on a checkpoint's word nothing is imported from a folder: give --config with the file next to it again"
            )


def is_importable(module: str) -> bool:
    """Whether Python has a module of this name, without a dot in it; it is not imported."""
    return module in sys.modules or find_spec(module) is not None


def texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each text below a config, with its dotted key; the items of a list have the list's."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from texts(value, f"{key}.{name}".removeprefix("."))
    elif isinstance(tree, list):
        for value in tree:
            yield from texts(value, key)
    elif isinstance(tree, str):
        yield key, tree
