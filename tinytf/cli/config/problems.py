"""All problems of a command line at once.

The parser stops at its first one, and so do the classes behind it. Where it does, it is asked again without what it
named: config by config and flag by flag, so that each problem is known by the place it was given in. A command line
without problems is parsed once, as ever, and what is imported is what the parser imports.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tinytf.cli.config.errors import REFUSED, Complaint, as_yaml, place, unknown
from tinytf.cli.config.preparse import Given
from tinytf.errors import UserError

MOST = 50
"""Problems that are told of; the rest of such a file is no config of ours."""


@dataclass
class Found:
    """What was found wrong, and what is left without it.

    Args:
        lines: one a problem.
        keys: those that were left out, and those probably meant; what is said of their defaults is not to be trusted.
        argv: flags and configs that the parser accepts.
    """

    lines: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    argv: list[str] = field(default_factory=list)

    def add(self, complaint: UserError, path: str | None = None) -> None:
        """Keep a complaint's lines, with the place in the file at ``path``; one that is known already, once."""
        key, meant = (complaint.key, complaint.meant) if isinstance(complaint, Complaint) else ("", "")
        where = place(key, [path]) or place(key.rpartition(".")[0], [path]) if path and key else ""
        for text in complaint.problems:
            line = f"{where}{text}"
            if line not in self.lines:
                self.lines.append(line)
        self.keys |= {key, meant} - {""}


Parse = Callable[[list[str]], Any]


def find_all(parse: Parse, base: list[str], argv: list[str], given: Given, sections: set[str]) -> Found:
    """Every complaint of a parser.

    Args:
        parse: takes flags; raises `Complaint` at the first that is wrong.
        base: what stands before the user's own, and is right.
        argv: the user's flags.
        given: the configs that they name.
        sections: the names of what holds keys.
    """
    found = Found(given.problems[:], argv=list(base))
    for path, content in zip(given.configs, given.contents, strict=True):
        _find_in_config(parse, path, copy.deepcopy(content), found, sections)
    quiet = ("--print_config", "-h", "--help")
    flags = [group for group in groups(argv) if not is_config(group) and not group[0].startswith(quiet)]
    _find_in_flags(parse, flags, found)
    return found


def sections_of(known: Iterable[str]) -> set[str]:
    """The names of what holds keys, of the dotted names of all keys."""
    keys = [name for name in known if not name.endswith(".help")]  # A flag that stands beside a class.
    return {name.rsplit(".", depth)[0] for name in keys for depth in range(1, name.count(".") + 1)}


def misplaced(content: dict[str, Any], sections: set[str], prefix: str = "") -> Iterator[Complaint]:
    """What the parser was seen to pass over: a section that is none, a linked key, a config in a config."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key == "config":
            yield Complaint(key, "config: a file takes in no other; give each with --config")
        elif key in REFUSED:
            yield unknown(key, ())
        elif key in sections and isinstance(value, dict):
            yield from misplaced(value, sections, f"{key}.")
        elif key in sections and value is not None:
            yield Complaint(key, f"{key}: expected keys and values, got {as_yaml(str(value))}")


def groups(argv: list[str]) -> Iterator[list[str]]:
    """Each flag with its values."""
    group: list[str] = []
    for argument in argv:
        if group and (argument.startswith("--") or argument == "-c" or not group[0].startswith("-") or len(group) > 1):
            yield group
            group = []
        group.append(argument)
    if group:
        yield group


def is_config(group: list[str]) -> bool:
    """Whether a flag with its value names a config file."""
    return group[0] in ("-c", "--config") or group[0].startswith("--config=")


def _find_in_config(parse: Parse, path: str, content: dict[str, Any], found: Found, sections: set[str]) -> None:
    for complaint in list(misplaced(content, sections)):
        found.add(complaint, path)
        remove(content, complaint.key.split("."))
    while len(found.lines) < MOST:
        trial = [*found.argv, "--config", json.dumps(content, default=str)]
        failed = complaint_of(parse, trial)
        if failed is None:
            found.argv = trial
            return
        found.add(failed, path)
        if not isinstance(failed, Complaint) or not remove(content, failed.key.split(".")):
            return


def _find_in_flags(parse: Parse, flags: list[list[str]], found: Found) -> None:
    together = [argument for group in flags for argument in group]
    if complaint_of(parse, [*found.argv, *together]) is None:
        found.argv += together
        return
    for group in flags:
        complaint = complaint_of(parse, [*found.argv, *group])
        if complaint is None:
            found.argv += group
        elif len(found.lines) < MOST:
            found.add(complaint)


def complaint_of(parse: Parse, argv: list[str]) -> UserError | None:
    """What a parser refuses these flags with; None where it takes them."""
    try:
        parse(argv)
    except UserError as error:
        return error
    return None


def remove(content: dict[str, Any], parts: list[str]) -> bool:
    """Take a key out of nested dicts, or the deepest thing on the way to it; whether there was anything."""
    for key in (parts[0], "init_args"):  # A dotted name leaves the latter out.
        if key not in content:
            continue
        inside, rest = content[key], parts[1:] if key == parts[0] else parts
        inner = bool(rest) and isinstance(inside, dict) and remove(inside, rest)
        if not inner and key != parts[0]:
            return False
        if not inner or not inside:
            del content[key]
        return True
    return False


def with_values(found: Found, of_values: Callable[[Any], list[str]], parse: Parse) -> list[str]:
    """All that was found, with what is wrong with the values that are left.

    Args:
        found: by the parser.
        of_values: the problems of a config that was parsed.
        parse: gives that config.
    """
    try:
        config = parse(found.argv)
    except UserError:
        return found.lines
    doubtful = {key.rsplit(".", 1)[-1] for key in found.keys}
    return [*found.lines, *(line for line in of_values(config) if not doubtful & set(words(line)))]


def in_order(lines: Iterable[str], configs: list[str]) -> list[str]:
    """As the files say it, then what flags say."""

    def place_of(line: str) -> tuple[int, int]:
        for number, path in enumerate(configs):
            if at := re.match(rf"{re.escape(path)}:(\d+):", line):
                return number, int(at[1])
        return len(configs), 0

    return sorted(lines, key=place_of)


def words(line: str) -> list[str]:
    """The words of a message, dotted names in their parts."""
    for sign in ".,:;=()":
        line = line.replace(sign, " ")
    return line.split()
