"""The splits partition the bytes of the text, at characters, and validation does not move for a test split."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinytf.data.documents import scan
from tinytf.data.splits import Split, cut_text, split_bytes
from tinytf.errors import UserError


def words(split: Split) -> str:
    return "".join(block for span in split for block in span.blocks())


@pytest.mark.parametrize("text", ["abcdefghij" * 10, "é" * 101, "👋" * 57, "a👋é日" * 33])
def test_the_parts_are_the_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    for val, test in [(0.1, 0.0), (0.1, 0.05), (0.37, 0.41), (0.999, 0.0)]:
        splits = cut_text(scan(str(tmp_path / "a.txt"), tmp_path), val, test)
        order = ["train", "test", "val"] if test else ["train", "val"]
        assert "".join(words(splits[name]) for name in order) == text
        assert abs(split_bytes(splits["val"]) - val * len(text.encode())) <= 4
        if test:
            assert abs(split_bytes(splits["test"]) - test * len(text.encode())) <= 8


def test_validation_stays_where_it_is_when_a_test_split_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij" * 10)
    text = scan(str(tmp_path / "a.txt"), tmp_path)
    assert words(cut_text(text, 0.1, 0.0)["val"]) == words(cut_text(text, 0.1, 0.2)["val"]) == "abcdefghij"


def test_documents_are_cut_where_the_bytes_say(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.txt").write_text(name * 10)
    (tmp_path / "aa.txt").touch()
    splits = cut_text(scan(str(tmp_path), tmp_path), 0.1, 0.2)
    assert [words((span,)) for span in splits["train"]] == ["a" * 10, "b" * 10, "c" * 10, "d" * 5]
    assert [words((span,)) for span in splits["test"]] == ["d" * 5, "e" * 5]
    assert [words((span,)) for span in splits["val"]] == ["e" * 5]


def test_texts_by_name_leave_the_corpus_whole(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 10)
    a, b, c = (scan(str(tmp_path / f"{name}.txt"), tmp_path) for name in "abc")
    splits = cut_text(a, 0.1, 0.0, b, c)
    assert {name: words(split) for name, split in splits.items()} == {
        "train": "a" * 10,
        "val": "b" * 10,
        "test": "c" * 10,
    }


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (0.0, 0.0, r"data\.val_fraction is 0\.0, but must be in \(0, 1\)"),
        (1.0, 0.0, r"data\.val_fraction is 1\.0"),
        (-0.1, 0.0, r"data\.val_fraction is -0\.1"),
        (float("nan"), 0.0, r"data\.val_fraction is nan"),
        (0.1, -0.1, r"data\.test_fraction is -0\.1"),
        (0.5, 0.5, r"leave nothing to train on"),
    ],
)
def test_impossible_fractions(val: float, test: float, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=message):
        cut_text(scan(str(tmp_path / "a.txt"), tmp_path), val, test)


def test_a_test_split_cannot_be_asked_for_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    text = scan(str(tmp_path / "a.txt"), tmp_path)
    with pytest.raises(UserError, match=r"either data\.test_fraction or data\.test_corpus"):
        cut_text(text, 0.1, 0.1, None, text)
