"""Write README's tables anew: `python -m tests.readme`."""

from __future__ import annotations

from pathlib import Path

from tests.readme.tables import with_tables

path = Path(__file__).parents[2] / "README.md"
path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
