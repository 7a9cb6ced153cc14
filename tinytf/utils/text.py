"""Plain values as text: strict JSON, times, dotted keys, aligned tables, what a terminal may be given."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from tinytf.errors import UserError


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
    """JSON that every parser reads; TypeError at values that JSON has no form for."""
    return json.dumps(strict(value), allow_nan=False, ensure_ascii=False, indent=indent)


def read_json(text: str | bytes, what: str) -> Any:
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
