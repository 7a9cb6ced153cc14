"""2. Documents: which bytes, or which documents, are for training, for testing, for validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tinytf.data.documents import Text, TextDocument, read_blocks
from tinytf.data.sources.files import skip
from tinytf.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitFractions:
    """Fractions of a corpus for validation and testing, 0 for no such split.

    By position, validation is the text's end. By document, each document's split is a function of its text alone: of
    all hashes the lowest are for validation, those above them for testing. It never changes when files are added, no
    text is in two splits, and validation is the same with and without a test split.
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

    def split_of(self, sha256: bytes) -> str:
        """The split of the document with this checksum."""
        # 64 bits of the checksum as a fraction of 2**64: uniform, and no random generator whose versions could differ.
        number = int.from_bytes(sha256[:8], "little")
        val = min(2**64 - 1, int(self.val * 2**64))
        train = min(2**64 - 1, int((self.val + self.test) * 2**64))
        return "val" if number < val else "test" if number < train else "train"


def split_fractions(val_fraction: float, test_fraction: float, val_given: bool, test_given: bool) -> SplitFractions:
    """The fractions that are cut off a corpus.

    Args:
        val_fraction: for validation; not used if there is a text for it.
        test_fraction: for testing, 0 for no test split.
        val_given, test_given: whether there is a text for it.

    Raises:
        UserError: for fractions that leave nothing to train on or contradict a text given by name.
    """
    if test_given and test_fraction:
        raise UserError("give either data.test_fraction or data.test_corpus, not both")
    if not 0 <= test_fraction < 1:
        raise UserError(f"data.test_fraction is {test_fraction}, but must be in [0, 1); 0 makes no test split")
    if not val_given and not 0 < val_fraction < 1:
        raise UserError(
            f"data.val_fraction is {val_fraction}, but must be in (0, 1): the best checkpoint is chosen by validation "
            "loss; or set data.val_corpus"
        )
    fractions = SplitFractions(0.0 if val_given else val_fraction, test_fraction)
    if fractions.val + fractions.test >= 1:
        raise UserError(
            f"data.val_fraction {val_fraction} and data.test_fraction {test_fraction} leave nothing to train on"
        )
    return fractions


@dataclass(frozen=True)
class TextSpan:
    """A document's bytes from start to end, both character boundaries."""

    document: TextDocument
    start: int
    end: int

    def __str__(self) -> str:
        return self.document.name

    def blocks(self) -> Iterator[str]:
        """Its text, in blocks of about a megabyte; UserError as `read_blocks`."""
        return read_blocks(self.document, self.start, self.end)

    def lines_before(self) -> int:
        """Line feeds of the document before the span; it is read again for them, which only a message is worth."""
        return sum(block.count("\n") for block in read_blocks(self.document, 0, self.start))


Split = tuple[TextSpan, ...]


def split_bytes(split: Split) -> int:
    """Length of a split in bytes of UTF-8."""
    return sum(span.end - span.start for span in split)


def cut_text(
    text: Text, val_fraction: float, test_fraction: float, val_text: Text | None = None, test_text: Text | None = None
) -> dict[str, Split]:
    """The splits by position, in the order of the text: train, test, val.

    Validation is the end of the text whether or not there is a test split, so that validation losses with and without
    one compare. Fractions count bytes of all documents together; a cut inside a character moves to its start.

    Args:
        text: the corpus.
        val_fraction: for validation; not used if ``val_text`` is given.
        test_fraction: for testing, 0 for no test split.
        val_text, test_text: text for that split; then none is cut off for it.

    Raises:
        UserError: as `split_fractions`.
    """
    fractions = split_fractions(val_fraction, test_fraction, val_text is not None, test_text is not None)
    test_at = round(text.n_bytes * (1 - fractions.val - test_fraction))
    val_at = round(text.n_bytes * (1 - fractions.val))
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
    spans, position = [], 0
    for document in text.documents:
        first = _character_start(document, min(max(start - position, 0), document.size))
        last = _character_start(document, min(max(end - position, 0), document.size))
        if last > first:
            spans.append(TextSpan(document, first, last))
        position += document.size
    return tuple(spans)


def _character_start(document: TextDocument, offset: int) -> int:
    if offset in (0, document.size):
        return offset
    with document.open() as file:
        # A character has at most four bytes, so that its start is at most three back.
        start = max(0, offset - 3)
        skip(file, start)
        raw = file.read(4)
    while 0x80 <= raw[offset - start] < 0xC0:  # A continuation byte.
        offset -= 1
    return offset
