"""The README of tinytf.run names a test for each invariant, and each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
README = TESTS.parents[1] / "tinytf" / "run" / "README.md"


def test_each_invariant_has_a_test_that_exists() -> None:
    rows = re.findall(r"^\| .+\. \| (.+) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        match = re.fullmatch(r"`(\w+\.py)::(\w+)`", row)
        assert match, row
        assert f"def {match[2]}(" in (TESTS / match[1]).read_text(encoding="utf-8"), row
