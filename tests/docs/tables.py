"""The tables of commands and keys in docs/configuration.md, from the parser that `--help` prints."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from tinytf.cli.config.parser import parser_of
from tinytf.cli.main import COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def commands() -> str:
    """One row per command."""
    return table(("command", "what it does"), [(f"`tinytf {name}`", text) for name, (_, text) in COMMANDS.items()])


def keys() -> str:
    """One table per section of a config, one row per key."""
    sections: dict[str, list[tuple[str, ...]]] = {}
    for action in parser_of("fit")._actions:
        # The others are help flags, the flags of whole sections, and keys that are linked to another.
        if type(action).__name__ != "ActionTypeHint":
            continue
        section, _, key = action.dest.partition(".")
        rows = sections.setdefault(section if key else "top level", [])
        rows += [(f"`{name}`", default, text) for name, default, text in rows_of(action)]
    head = ("key", "default", "what it does")
    order = sorted(sections, key=lambda section: section != "top level")
    return "\n\n".join(f"### {section}\n\n{table(head, sections[section])}" for section in order)


def rows_of(action: Any) -> Iterator[tuple[str, str, str]]:
    """The key, and the arguments of the class that is its value."""
    default = action.default
    path = default.get("class_path") if isinstance(default, dict) else getattr(default, "class_path", None)
    yield action.dest, f"`{path.rsplit('.', 1)[-1]}`" if path else as_yaml(default), cell(action.help)
    types = (action._typehint, *typing.get_args(action._typehint))
    found = [kind for kind in types if inspect.isclass(kind) and dataclasses.is_dataclass(kind)]
    if path:
        module, _, name = path.rpartition(".")
        found = [getattr(import_module(module), name)]
    for kind in found:
        parser = LightningArgumentParser()
        parser.add_class_arguments(kind, skip={"params"} & set(inspect.signature(kind).parameters))
        for inner in parser._actions:
            if type(inner).__name__ == "ActionTypeHint":
                yield f"{action.dest}.{inner.dest}", as_yaml(inner.default), cell(inner.help)


def as_yaml(value: Any) -> str:
    """A default as it is written in a config."""
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


def cell(text: str | None) -> str:
    """A help text on one line, with the characters escaped that Markdown would read as its own."""
    return " ".join((text or "").split()).replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, tuple("---" for _ in head), *rows))


SECTIONS: dict[str, Callable[[], str]] = {"commands": commands, "keys": keys}


def with_tables(page: str) -> str:
    """The page with the text between each pair of marks written again.

    Raises:
        ValueError: if the marks of a table are missing.
    """
    for name, make in SECTIONS.items():
        pattern = re.compile(rf"(<!-- {name}: written by make docs -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        content = f"\n{make()}\n\n"
        page, count = pattern.subn(lambda found, content=content: f"{found[1]}{content}{found[2]}", page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{PAGE.name} has no marks for the table of {name}")
    return page
