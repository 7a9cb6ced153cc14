"""The tables of commands and keys in docs/configuration.md, from the parser that `--help` prints."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tinytf.cli.config.help import keys_of
from tinytf.cli.config.parser import parser_of
from tinytf.cli.main import COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def commands() -> str:
    """One row per command."""
    return table(("command", "what it does"), [(f"`tinytf {name}`", text) for name, (_, text) in COMMANDS.items()])


def keys() -> str:
    """One table per section of a config, one row per key."""
    sections: dict[str, list[tuple[str, ...]]] = {}
    for key in keys_of(parser_of("fit")):
        if key.default is not None:
            section, _, name = key.name.partition(".")
            row = (f"`{key.name}`", f"`{key.default}`", cell(key.text))
            sections.setdefault(section if name else "top level", []).append(row)
    head = ("key", "default", "what it does")
    order = sorted(sections, key=lambda section: section != "top level")
    return "\n\n".join(f"### {section}\n\n{table(head, sections[section])}" for section in order)


def cell(text: str) -> str:
    """A text with the characters escaped that Markdown would read as its own."""
    return text.replace("|", "\\|").replace("<", "&lt;")


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
