"""Write the tables of docs/configuration.md: `python -m tests.docs`."""

from __future__ import annotations

from tests.docs.tables import PAGE, with_tables

PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
