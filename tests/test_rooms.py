"""The rooms of the package, from the lowest to the highest: imports go down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tinytf"
ORDER = ("errors", "utils", "model", "data", "weights", "training", "generation", "run", "export", "serve", "cli")
FRONT = {"__init__": "run", "__main__": "cli"}
"""`tinytf.load` and `python -m tinytf` stand before the rooms they open."""


def imports() -> Iterator[tuple[Path, str, str]]:
    """File, its room, and each other room that it imports from."""
    for path in PACKAGE.rglob("*.py"):
        inner = path.relative_to(PACKAGE)
        room = inner.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.startswith("tinytf.") and name.split(".")[1] != room:
                    yield inner, room, name.split(".")[1]


def test_rooms_import_downwards() -> None:
    found = list(imports())
    assert len(found) > 100
    for path, room, other in found:
        if room in FRONT:
            assert other == FRONT[room], f"{path} imports {other}"
        else:
            assert ORDER.index(other) < ORDER.index(room), f"{path} imports {other}, which stands above it"
