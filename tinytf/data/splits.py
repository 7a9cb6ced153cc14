"""Which bytes of which documents are for training, for testing, for validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinytf.data.corpus import Document, Text, read_blocks, skip
from tinytf.errors import UserError


@dataclass(frozen=True)
class Segment:
    """A document's bytes from start to end, both character boundaries."""

    document: Document
    start: int
    end: int

    def blocks(self) -> Iterator[str]:
        """Its text, in blocks of about a megabyte; UserError as `read_blocks`."""
        return read_blocks(self.document, self.start, self.end)


Split = tuple[Segment, ...]


def split_bytes(split: Split) -> int:
    """Length of a split in bytes of UTF-8."""
    return sum(segment.end - segment.start for segment in split)


WORD = 1 << 64


def number_of(sha256: bytes) -> int:
    """A document's number, 0 to 2**64 - 1, by which it falls into a split."""
    return int.from_bytes(sha256[:8], "little")


@dataclass(frozen=True)
class Shares:
    """Splits by document: of all numbers the lowest are for validation, those after them for testing.

    A document's split is a function of its text alone. It stays where it is when files are added, no text is in two
    splits, and validation is the same with and without a test split.
    """

    val: float
    test: float

    @property
    def divides(self) -> bool:
        """Whether anything is kept from training."""
        return self.val + self.test > 0

    def names(self) -> tuple[str, ...]:
        """The splits that there are."""
        return ("train", *(["val"] if self.val else []), *(["test"] if self.test else []))

    def split_of(self, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.str_]:
        """The split of each document, by its number [n]."""
        val, train = (np.uint64(bound) for bound in self._bounds())
        return np.where(numbers < val, "val", np.where(numbers < train, "test", "train"))

    def trains_on(self, sha256: bytes) -> bool:
        """Whether a document with this checksum is for training."""
        return number_of(sha256) >= self._bounds()[1]

    def _bounds(self) -> tuple[int, int]:
        return min(WORD - 1, int(self.val * WORD)), min(WORD - 1, int((self.val + self.test) * WORD))


def shares_of(val_fraction: float, test_fraction: float, val_given: bool, test_given: bool) -> Shares:
    """The shares that are cut off a corpus.

    Args:
        val_fraction: share for validation; not used where there is a text for it.
        test_fraction: share for testing, 0 for no test split.
        val_given, test_given: whether there is a text for it.

    Raises:
        UserError: for fractions that leave nothing to train on or contradict a text given by name.
    """
    if test_given and test_fraction:
        raise UserError("give either data.test_fraction or data.test_corpus, not both")
    if not 0 <= test_fraction < 1:
        raise UserError(f"data.test_fraction is {test_fraction}: it must lie between 0 (no test split) and 1")
    if not val_given and not 0 < val_fraction < 1:
        raise UserError(
            f"data.val_fraction is {val_fraction}: it must lie between 0 and 1, both left out, for the best checkpoint "
            "is chosen by validation loss; data.val_corpus takes other files for it"
        )
    shares = Shares(0.0 if val_given else val_fraction, test_fraction)
    if shares.val + shares.test >= 1:
        raise UserError(
            f"data.val_fraction {val_fraction} and data.test_fraction {test_fraction} leave nothing to train on"
        )
    return shares


def cut_text(
    text: Text, val_fraction: float, test_fraction: float, val_text: Text | None = None, test_text: Text | None = None
) -> dict[str, Split]:
    """The splits, in the order of the text: train, test, val.

    Validation is the end of the text whether or not there is a test split, so that validation losses with and without
    one compare. Fractions count bytes of all documents together; a cut inside a character moves to its start.

    Args:
        text: the corpus.
        val_fraction: share for validation; not used where ``val_text`` is given.
        test_fraction: share for testing, 0 for no test split.
        val_text: text for validation; then none is cut off for it.
        test_text: text for testing.

    Raises:
        UserError: for fractions that leave nothing to train on or contradict a text given by name.
    """
    shares = shares_of(val_fraction, test_fraction, val_text is not None, test_text is not None)
    val_share = shares.val
    test_at = round(text.n_bytes * (1 - val_share - test_fraction))
    val_at = round(text.n_bytes * (1 - val_share))
    splits = {"train": _between(text, 0, test_at)}
    if val_text is None:
        splits["val"] = _between(text, val_at, text.n_bytes)
    else:
        splits["val"] = _between(val_text, 0, val_text.n_bytes)
    if test_text is not None:
        splits["test"] = _between(test_text, 0, test_text.n_bytes)
    elif test_fraction:
        splits["test"] = _between(text, test_at, val_at)
    return splits


def _between(text: Text, start: int, end: int) -> Split:
    segments, position = [], 0
    for document in text.documents:
        first = _character_start(document, min(max(start - position, 0), document.size))
        last = _character_start(document, min(max(end - position, 0), document.size))
        if last > first:
            segments.append(Segment(document, first, last))
        position += document.size
    return tuple(segments)


def _character_start(document: Document, offset: int) -> int:
    if offset in (0, document.size):
        return offset
    with document.open() as file:
        start = max(0, offset - 3)
        skip(file, start)  # What is packed with zstd cannot seek.
        raw = file.read(4)
    while 0x80 <= raw[offset - start] < 0xC0:  # a continuation byte
        offset -= 1
    return offset
