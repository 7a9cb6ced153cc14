"""What the command line and its YAML files say, read once before the real parser: which checkpoint, which run."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tinytf.errors import UserError


@dataclass
class Given:
    """The settings that decide what the parser's defaults are, later files and flags winning."""

    ckpt_path: str | None = None
    name: str | None = None
    root: str | None = None
    configs: list[str] = field(default_factory=list)


def scan(argv: list[str]) -> Given:
    """Find the checkpoint, the run's name and the folder of runs in flags and config files.

    Raises:
        UserError: where a config file is missing or is not YAML.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    for flag in ("--ckpt_path", "--name", "--checkpoint.dir"):
        parser.add_argument(flag, default=None)
    try:
        flags = vars(parser.parse_known_args(argv)[0])
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from None
    merged: dict[str, Any] = {}
    for path in flags["config"]:
        content = read_yaml(path)
        merged.update({key: content[key] for key in ("ckpt_path", "name") if content.get(key) is not None})
        merged["root"] = (content.get("checkpoint") or {}).get("dir", merged.get("root"))
    return Given(
        ckpt_path=flags["ckpt_path"] or merged.get("ckpt_path"),
        name=flags["name"] or merged.get("name"),
        root=flags["checkpoint.dir"] or merged.get("root"),
        configs=flags["config"],
    )


def read_yaml(path: str) -> dict[str, Any]:
    """A config file's content, or one line that says where it is wrong."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: byte {error.start} is not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{path}{where}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, but a config is keys and values")
    return content
