"""A stranger's text on a terminal, and a stranger's JSON."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytf.errors import UserError
from tinytf.utils.text import printable, read_json, terminal_text


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_nothing_that_a_terminal_acts_on_is_left(text: str) -> None:
    shown = printable(text)
    assert not [mark for mark in shown if unicodedata.category(mark) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    shown.encode("utf-8")


def test_what_can_be_read_stays() -> None:
    assert printable("café 東京 ←") == "café 東京 ←"
    assert printable("\x1b]0;title\x07\n\u202e") == r"\x1b]0;title\x07\n\u202e"


@pytest.mark.parametrize("text", ["", "{", b"\xff\xfe\x00", "[" * 100_000, '{"a":' * 100_000, "1" * 5_000])
def test_what_is_not_json_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^export\.json: it"):
        read_json(text, "export.json")


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_json_is_read(value: object) -> None:
    assert read_json(json.dumps(value), "file") == value


def test_text_on_a_terminal_keeps_its_lines_and_its_letters() -> None:
    # The joiners of an emoji of several people, and the wide space of Japanese.
    assert terminal_text("a\tb\n\u3000\U0001f468\u200d\U0001f469 é") == "a\tb\n\u3000\U0001f468\u200d\U0001f469 é"
    assert terminal_text("\x1b]0;title\x07\r\n\u202e\x9b2J") == "\\x1b]0;title\\x07\\r\n\\u202e\\x9b2J"
