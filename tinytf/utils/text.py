"""Plain values as text: strict JSON, times, dotted keys, aligned tables, what a terminal may be given."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import yaml

from tinytf.errors import UserError

HIDDEN = "***"
"""What is stored in place of a secret, so that a reader sees that something was left out."""

TOKENS = re.compile(r"tokens?$", re.IGNORECASE)
SECRET = re.compile(
    r"(api|access|private|account)[_-]?key|secret|passw(or)?d|passphrase|credential|connection[_-]?string|signature"
    rf"|pwd|(^|[._-])auth(orization)?$|{TOKENS.pattern}",
    re.IGNORECASE,
)
"""Names of settings whose values are secrets; numbers under a name that ends in "tokens" are none (`is_secret`)."""

ACTS = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of Unicode that act on a terminal, or that it has no bytes for."""

TEXT_MARKS = "\n\t\u200c\u200d"
"""What texts need of them: lines, tabs, and the joiners of Persian and of emoji."""

# Bounded: a search tries each letter of a text as the scheme's first.
NAME = r"[a-z][a-z0-9+.-]{0,30}"
SCHEME = rf"{NAME}://"
ADDRESS = re.compile(rf"\s*({NAME}::)*{SCHEME}", re.IGNORECASE)
"""How a text begins that is one address, chained ones of fsspec (``simplecache::https://…``) among them."""

ADDRESS_IN_TEXT = re.compile(rf"{SCHEME}(?:[^\s/?#]*@)?(?:[^\s'\"<>]*[^\s'\"<>.,:;)\]}}])?", re.IGNORECASE)
CHAIN = re.compile(rf"::(?=(?:{NAME}::){{0,8}}{SCHEME})", re.IGNORECASE)
HOST = re.compile(r"([^@:/?#]*|\[[0-9a-f:.]*\])(:\d*)?(?=[/?#]|$)", re.IGNORECASE)
SHA256 = re.compile(r"#sha256=([0-9a-f]{64})?$", re.IGNORECASE)


def strict(value: Any) -> Any:
    """A value in JSON's own types: tensors as numbers, non-finite floats as "NaN", "Infinity", "-Infinity"."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(inner) for inner in value]
    return value


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every parser reads and no terminal acts on; TypeError at values that JSON has no form for."""
    text = json.dumps(strict(value), allow_nan=False, ensure_ascii=False, indent=indent)
    # Outside its strings JSON is ASCII: what is not printable stands inside one, where it may be escaped.
    return "".join(mark if mark.isprintable() or mark == "\n" else _json_escape(mark) for mark in text)


def _json_escape(mark: str) -> str:
    return "\\u007f" if mark == "\x7f" else json.dumps(mark)[1:-1]  # json leaves DEL as it is.


def read_json(text: str | bytes, what: object) -> Any:
    """The value of a JSON text; UserError, which begins with ``what``, if it is none or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:  # At about 1,000 levels; no file of ours has 20.
        raise UserError(f"{what}: its JSON is nested too deeply") from None
    except ValueError as error:  # A JSONDecodeError, bytes in no encoding of Unicode, a number of 5,000 digits.
        raise UserError(f"{what}: it is not JSON ({error})") from None


def printable(text: str) -> str:
    """One line that does nothing to a terminal: control and formatting characters are written as escapes.

    A file's text may move the cursor, set the window's title, or turn the writing direction (U+202E), so that a line
    reads as something else.
    """
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def terminal_text(text: str) -> str:
    """A text in which only line feeds and tabs act on a terminal: the others are escaped, as by `printable`."""
    return "".join(
        printable(mark) if unicodedata.category(mark) in ACTS and mark not in TEXT_MARKS else mark for mark in text
    )


def public(value: Any) -> Any:
    """A value as it may be stored and shown: without what may be a credential.

    Addresses lose user, password, query and fragment (`HIDDEN` stands there; a ``#sha256=`` stays, and so does the
    query of ``hf://``, which names the data set's parts). Values under a name like ``api_key`` are hidden whole.
    Mappings and lists are gone through; the value itself is not changed.
    """
    if isinstance(value, Mapping):
        return {key: HIDDEN if is_secret(str(key), inner) else public(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(inner) for inner in value]
    if not isinstance(value, str) or "://" not in value:
        return value
    if ADDRESS.match(value):
        return "::".join(map(_public_address, CHAIN.split(value)))
    return ADDRESS_IN_TEXT.sub(lambda match: _public_address(match[0]), value)


def is_secret(name: str, value: Any) -> bool:
    """Whether a setting's value is to be hidden: by its name, unless it is empty, a switch, or a count of tokens."""
    if not SECRET.search(name) or value is None or isinstance(value, bool) or value in ("", [], (), {}):
        return False
    return not (TOKENS.search(name) and _is_numeric(value))


def _is_numeric(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return all(map(_is_numeric, value)) if isinstance(value, (list, tuple)) else isinstance(value, (int, float))


def hidden_keys(value: Any, key: str = "") -> Iterator[str]:
    """The dotted keys of a config at which `public` has left something out."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from hidden_keys(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from hidden_keys(inner, f"{key}[{index}]")
    elif isinstance(value, str) and HIDDEN in value:
        # Not wherever the mark is: a prompt may be three stars.
        in_address = "://" in value and (f"{HIDDEN}@" in value or f"?{HIDDEN}" in value)
        if in_address or (value == HIDDEN and SECRET.search(key)):
            yield key


def _public_address(address: str) -> str:
    scheme, found, rest = address.partition("://")
    if not found:
        return address
    user, start = "", 0
    while (at := rest.find("@", start)) >= 0 and not HOST.match(rest, start):
        # Up to each @ in turn: a password may have any character in it, "/" and "?" among them.
        start = at + 1
    if start:
        # What follows an @ may look like a host, and be the rest of the password still.
        end = re.search(r"[?#]|$", rest[start:])
        start = max(start, rest.rfind("@", start, start + (end.start() if end else 0)) + 1)
        user, rest = f"{HIDDEN}@", rest[start:]
    if scheme.lower() == "hf":
        return f"{scheme}://{user}{rest}"
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    checksum = SHA256.search(rest)
    fragment = checksum[0] if checksum else ""
    query = f"?{HIDDEN}" if len(rest) > len(path) + len(fragment) else ""
    return f"{scheme}://{user}{path}{query}{fragment}"


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes each text that a reader of YAML 1.1 or 1.2 would take for something else.

    PyYAML reads and writes YAML 1.1, where 3e-4 is a text: a run of that name would be a number's to others, and to us.
    """

    def represent_str(self, text: str) -> yaml.Node:
        # PyYAML writes some separators, such as U+0085, as they are, and folds them into spaces when it reads.
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
# An enumeration whose members are texts, as Lightning's are, is written as the text.
_Dumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9._]+([eE][-+]?[0-9]+)?|0o[0-7]+)$"), list("-+.0123456789")
)


def yaml_text(content: Mapping[str, Any]) -> str:
    """Plain values as YAML, keys in their order."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def utc_now() -> str:
    """The time, as ISO 8601 in UTC with microseconds: ``2026-01-31T12:00:00.000000Z``."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds_between(earlier: str, later: str) -> float:
    """Seconds from one `utc_now` to another."""
    # Python 3.10's fromisoformat does not know the Z.
    start, end = (datetime.fromisoformat(time.replace("Z", "+00:00")) for time in (earlier, later))
    return (end - start).total_seconds()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with dotted keys; an empty mapping is a leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of equal length as aligned columns two spaces apart; the columns in ``right`` are flush right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
