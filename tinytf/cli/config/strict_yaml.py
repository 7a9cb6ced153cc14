"""YAML with bounds: what a file or a flag may cost to read, and which values it may have.

PyYAML's safe loader runs no code, but reads YAML 1.1: 1_000 and 1:30 are numbers there, ``no`` is false, 3e-4 a text,
and 2020-13-45 an error in a date. Here is the core schema of YAML 1.2, which has JSON's values alone.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonargparse
import yaml
from jsonargparse import _loaders_dumpers

from tinytf.utils.text import yaml_text

LONGEST = 2**18
"""Bytes of a config file. The largest of ours has 2,000; PyYAML reads 100 kB a second."""

DEEPEST = 50
MOST_NODES = 100_000
"""Nodes of a document with its aliases written out: nine lines of nine aliases each are 387 million."""

CORE_SCHEMA = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]{1,300}",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}
KINDS = (*CORE_SCHEMA, "str", "seq", "map")
TAG = "tag:yaml.org,2002:"


class Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Constructs None, bool, int, float, str, list and dict."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the table by first character is PyYAML's, None is any character
        None: [(TAG + kind, re.compile(f"(?:{pattern})$")) for kind, pattern in CORE_SCHEMA.items()]
    }
    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(TAG) in KINDS
    }

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise yaml.YAMLError(f"it has {len(text):,} characters, more than the {LONGEST:,} that it may have")
        # PyYAML's time grows with the square of open brackets: 3,000 take it ten seconds.
        opened = 0
        for mark in text:
            opened += (mark in "[{") - (mark in "]}")
            if opened > 10 * DEEPEST:
                raise yaml.YAMLError(f"it is more than {DEEPEST} levels deep")
        super().__init__(text)

    def get_single_node(self) -> yaml.Node | None:
        try:
            root = super().get_single_node()
        except RecursionError:
            raise yaml.YAMLError(f"it is more than {DEEPEST} levels deep") from None
        if root is not None:
            require_bounded(root)
            for mark, problem in repeated_keys(root):
                raise yaml.constructor.ConstructorError(None, None, problem, mark)
        return root

    def construct_document(self, node: yaml.Node) -> Any:
        try:
            return super().construct_document(node)
        except (TypeError, ValueError) as error:
            raise yaml.YAMLError(" ".join(str(error).split())) from None


def _number(loader: Loader, node: yaml.ScalarNode) -> int | float:
    text = loader.construct_scalar(node)
    kind = node.tag.removeprefix(TAG)
    if not re.fullmatch(CORE_SCHEMA[kind], text) and not re.fullmatch(CORE_SCHEMA["int"], text):
        raise yaml.constructor.ConstructorError(None, None, f"{text[:80]} is not a number", node.start_mark)
    return int(text) if kind == "int" else decimal(re.sub(r"\.(?=[iInN])", "", text))


def decimal(text: str) -> int | float:
    """A number with a point or an exponent; 1e3 is the integer that people mean by it, 1000.0 and 1.5 are floats.

    A key that takes a float makes one of the integer again.
    """
    value = float(text)
    whole = re.fullmatch(r"[^eE]+[eE][+]?[0-9]+", text) and value.is_integer() and abs(value) < 2**53
    return int(value) if whole else value


def _bool(loader: Loader, node: yaml.ScalarNode) -> bool:
    text = loader.construct_scalar(node)
    if not re.fullmatch(CORE_SCHEMA["bool"], text):
        raise yaml.constructor.ConstructorError(None, None, f"{text[:80]} is not true or false", node.start_mark)
    return text.lower() == "true"


Loader.add_constructor(TAG + "int", _number)
Loader.add_constructor(TAG + "float", _number)
Loader.add_constructor(TAG + "bool", _bool)


def load(text: str) -> Any:
    """The value of a YAML text; yaml.YAMLError if it has none within the bounds."""
    if text.startswith("{"):
        # Exact, where YAML leaves JSON's escape of an emoji as two half characters.
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text, object_pairs_hook=_unique, parse_float=decimal, parse_constant=_no_constant)
    return Loader(text).get_single_data()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is set twice")  # YAML's reader, whose turn it then is, says which and where.
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")  # And in YAML 1.2 it is a text.


def load_with_nodes(text: str) -> tuple[Any, yaml.Node | None]:
    """A YAML text's value and its nodes, which know their lines; errors as `load`."""
    loader = Loader(text)
    root = loader.get_single_node()
    return (None if root is None else loader.construct_document(root)), root


def require_bounded(root: yaml.Node) -> None:
    """Refuse a document that is too deep, as one is that holds itself, or too large once aliases are written out."""
    waiting, seen = [(root, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST_NODES:
            limit = f"{DEEPEST} levels deep" if depth > DEEPEST else f"{MOST_NODES:,} values, aliases written out"
            raise yaml.constructor.ConstructorError(None, None, f"it is more than {limit}", node.start_mark)
        for child in node.value if isinstance(node, yaml.CollectionNode) else ():
            waiting += [(each, depth + 1) for each in (child if isinstance(child, tuple) else (child,))]


def repeated_keys(node: yaml.Node, prefix: str = "") -> Iterator[tuple[yaml.Mark, str]]:
    """Place and message of each key that is set twice in one mapping, of which YAML would take the last."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from repeated_keys(item, prefix)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for name, value in node.value:
        key, line = f"{prefix}{name.value}", name.start_mark.line + 1
        if key in first and name.value != "<<":
            yield name.start_mark, f"{key} is set twice, here and in line {first[key]}: keep one"
        first.setdefault(key, line)
        yield from repeated_keys(value, f"{key}.")


def line_of(node: yaml.Node | None, parts: list[str]) -> int | None:
    """The line, counted from 1, at which a dotted key stands in a YAML mapping; None if it does not."""
    if isinstance(node, yaml.SequenceNode):
        return next((found for item in node.value if (found := line_of(item, parts))), None)
    if not isinstance(node, yaml.MappingNode):
        return None
    for name, value in node.value:
        if name.value == parts[0]:
            line: int = name.start_mark.line + 1
            return line if len(parts) == 1 else line_of(value, parts[1:])
        if name.value == "init_args":  # A dotted key leaves it out: model.optimizer.lr.
            inside = line_of(value, parts)
            if inside is not None:
                return inside
    return None


STRICT = "strict"
"""The parser mode of jsonargparse that reads so."""

jsonargparse.set_loader(STRICT, load, (yaml.YAMLError,))
jsonargparse.set_dumper("yaml", yaml_text)  # Of --print_config.
# Where a number or a boolean is expected, jsonargparse reads a text with a loader of its own, whatever the mode, and
# before that by str.isdigit and int, which take full-width and Arabic digits for numbers. There is no public way to
# either; a test holds that the names are there.
_loaders_dumpers.yaml_default_loader = Loader  # type: ignore[assignment]
_loaders_dumpers.load_basic = lambda text: _loaders_dumpers.not_loaded
