"""The config files of a command line: presets by name, YAML read strictly, and the line at which a key stands."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

import tinytf
from tinytf.cli.config.strict_yaml import LONGEST, line_of, load_with_nodes
from tinytf.errors import UserError
from tinytf.utils.files import read_text, user_path
from tinytf.utils.text import flatten

PRESET = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
"""What may be a preset's name. A path has a suffix, and `./base` is always a path."""

PATH_MAX = 2**16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConfigFile:
    """One YAML file of ``--config``.

    Args:
        path: as the user would find it again.
        content: its keys and values.
        root: the YAML nodes, which know their lines.
    """

    path: str
    content: dict[str, Any]
    root: yaml.Node | None

    def location(self, key: str) -> str:
        """``path:line: `` of a dotted key, or an empty string if the file does not set it."""
        line = line_of(self.root, key.split("."))
        return f"{self.path}:{line}: " if line is not None else ""

    def as_argument(self, sections: Iterable[str]) -> list[str]:
        """The file as an argument of the parser, which reads JSON as it reads YAML.

        Sections that hold nothing (``model:`` with only a comment below) are left out: they change nothing, where the
        parser would take them for null.
        """
        return as_config(drop_empty(self.content, set(sections)))


@dataclass(frozen=True)
class Arguments:
    """A command line before it is parsed: its config files, the flags beside them, and what decides the defaults.

    Args:
        files: in their order; later ones win.
        flags: everything but ``--config``; flags win over files, wherever they stand.
        ckpt_path, name, root: of the checkpoint whose config the parser's defaults come from; None if not given.
    """

    files: list[ConfigFile]
    flags: list[str]
    ckpt_path: str | None
    name: str | None
    root: str | None

    @cached_property
    def keys(self) -> set[str]:
        """The dotted keys that flags and files set; one that takes a class is set by its ``class_path``."""
        keys = {flag.partition("=")[0].removeprefix("--") for flag in self.flags if flag.startswith("--")}
        keys.update(key for file in self.files for key, _ in flatten(file.content))
        return {key.removesuffix("+").removesuffix(".class_path") for key in keys}

    def location(self, *keys: str) -> str:
        """``path:line: `` of the first of these keys, or of its section, in the last file that has one.

        Empty if a flag gives one of them, or a key inside of one: the files are not to blame then.
        """
        if any(re.match(rf"--{re.escape(key)}(?=[.=]|$)", flag) for flag in self.flags for key in keys):
            return ""
        names = [*keys, *(key.rpartition(".")[0] for key in keys)]
        places = (file.location(name) for file in reversed(self.files) for name in names if name)
        return next((place for place in places if place), "")


def read_arguments(argv: list[str]) -> Arguments:
    """Separate config files from flags, read the files, and look up what names a checkpoint.

    Raises:
        UserError: if a file is missing, is not YAML, sets a key twice, or a preset does not exist.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--ckpt_path", "--name", "--checkpoint.dir"):
        peek.add_argument(flag)
    try:
        configs, flags = parser.parse_known_args(argv)
        given = vars(peek.parse_known_args(flags)[0])
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from None
    files = [read_config(find_config(name)) for name in configs.config]
    for file in files:
        section = file.content.get("checkpoint")
        keys = {**file.content, "checkpoint.dir": section.get("dir") if isinstance(section, dict) else None}
        # What has the wrong type is the parser's to refuse.
        given.update({key: keys[key] for key in given if given[key] is None and isinstance(keys.get(key), str)})
    return Arguments(files, flags, given["ckpt_path"], given["name"], given["checkpoint.dir"])


# -- presets -------------------------------------------------------------------------------------------------------


def preset_dir() -> Path:
    """Where the configs that come with tinytf lie: in an installed package, else beside it in a checkout."""
    package = Path(tinytf.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def preset_names() -> list[str]:
    """The presets, such as ``base`` and ``loggers/wandb``."""
    root = preset_dir()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find_config(given: str) -> str:
    """The path of what follows ``--config``. A file of that name wins over a preset, which is logged."""
    path = user_path(given, what="--config")
    if not PRESET.fullmatch(given):
        return given
    preset = preset_dir() / f"{given}.yaml"
    if path.exists() and not path.is_dir():
        if preset.is_file():
            log.info("--config %s: reading the file here, not the preset of that name", given)
        return given
    if preset.is_file():
        return str(preset)
    if path.is_dir():  # Opening it says so.
        return given
    inside = [name for name in preset_names() if name.endswith(f"/{given}")]
    near = inside or difflib.get_close_matches(given, preset_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"the presets are {', '.join(preset_names())}"
    raise UserError(f"--config {given}: no such file and no such preset; {hint}")


def as_config(content: dict[str, Any]) -> list[str]:
    """Content as an argument of the parser, which reads JSON as it reads YAML."""
    # jsonargparse first looks for a file of that name: longer than any path, it is none.
    return ["--config", json.dumps(content).ljust(PATH_MAX)]


# -- YAML ----------------------------------------------------------------------------------------------------------


def read_config(path: str) -> ConfigFile:
    """A config file's content; UserError with the line if it cannot be read."""
    text = read_text(path, what="--config", limit=LONGEST)
    try:
        content, root = load_with_nodes(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}" if mark else ""
        kind = "" if isinstance(error, yaml.constructor.ConstructorError) else "not YAML: "
        raise UserError(f"{path}{where}: {kind}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, got a {type(content).__name__}")
    return ConfigFile(path, content, root)


def drop_empty(content: dict[str, Any], sections: set[str], prefix: str = "") -> dict[str, Any]:
    """The content without the ``sections`` that are null."""
    return {
        name: drop_empty(value, sections, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in content.items()
        if value is not None or f"{prefix}{name}" not in sections
    }
