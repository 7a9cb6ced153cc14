"""What the command line and its YAML files say, read once before the real parser: which checkpoint, which run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tinytf.errors import UserError


@dataclass
class Given:
    """The settings that decide what the parser's defaults are, later files and flags winning.

    Args:
        ckpt_path: as given.
        name: of the run.
        root: the folder of runs.
        configs: the files, in their order.
        contents: what they hold.
        problems: keys that a file gives twice, one line each.
    """

    ckpt_path: str | None = None
    name: str | None = None
    root: str | None = None
    configs: list[str] = field(default_factory=list)
    contents: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def scan(argv: list[str]) -> Given:
    """Find the checkpoint, the run's name and the folder of runs in flags and config files.

    Raises:
        UserError: where config files are missing or are not YAML, one line a file.
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
    twice: list[str] = []
    contents = read_all(flags["config"], twice)
    for content in contents:
        # What has the wrong type is the parser's to refuse.
        merged.update({key: content[key] for key in ("ckpt_path", "name") if isinstance(content.get(key), str)})
        section = content.get("checkpoint")
        if isinstance(section, dict) and isinstance(section.get("dir"), str):
            merged["root"] = section["dir"]
    return Given(
        ckpt_path=flags["ckpt_path"] or merged.get("ckpt_path"),
        name=flags["name"] or merged.get("name"),
        root=flags["checkpoint.dir"] or merged.get("root"),
        configs=flags["config"],
        contents=contents,
        problems=twice,
    )


def read_all(paths: list[str], twice: list[str]) -> list[dict[str, Any]]:
    """The files' content; those that cannot be read are told of together."""
    found: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for path in paths:
        try:
            content, again = read_yaml(path)
        except UserError as error:
            unreadable += error.problems
        else:
            found.append(content)
            twice += again
    if unreadable:
        raise UserError(*unreadable)
    return found


def read_yaml(path: str) -> tuple[dict[str, Any], list[str]]:
    """A config file's content, and a line for each key that it gives twice, of which YAML would take the last.

    Raises:
        UserError: where it cannot be read, and what is wrong in which line.
    """
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        content = loader.construct_document(node) if node else None
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
        return {}, []
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, but a config is keys and values")
    return content, [f"{path}:{line}: {what}" for line, what in repeated(node, "")]


def repeated(node: yaml.Node, prefix: str) -> Iterator[tuple[int, str]]:
    """Line and message of each key that stands twice in one mapping."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from repeated(item, prefix)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for name, value in node.value:
        key, line = f"{prefix}{name.value}", name.start_mark.line + 1
        if key in first and name.value != "<<":
            yield line, f"{key} stands twice, here and in line {first[key]}: keep one"
        first.setdefault(key, line)
        yield from repeated(value, f"{key}.")
