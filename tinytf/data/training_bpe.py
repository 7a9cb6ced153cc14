"""The byte-pair tokenizer of a text: trained once, on a sample where the text is long, and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer

from tinytf.data.cache import written_whole
from tinytf.data.pieces import BEFORE_WHITE_SPACE, pieces
from tinytf.data.progress import ByteProgress, byte_progress
from tinytf.data.records import Record, Slice, records
from tinytf.data.splits import Shares, Split, split_bytes
from tinytf.data.tokenizer import byte_pair_tokenizer, tokenizer_from_text
from tinytf.errors import UserError

LABEL = "reading for the tokenizer"


def kept(path: Path, train: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer under this name, trained where it is not there."""
    try:
        return tokenizer_from_text(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, UserError):
        # Missing, or damaged on the disk: either way it is trained again from the same text.
        tokenizer = train()
        with written_whole(path) as file:
            file.write(tokenizer.to_str().encode())
        return tokenizer


def train_on_split(split: Split, vocab_size: int, sample_bytes: int) -> Tokenizer:
    """Byte-pair merges from the training part alone: what validation measures must not have shaped the tokens.

    Of a longer part every so many-th piece is taken, so that all of it is heard.
    """
    total = split_bytes(split)
    with byte_progress(LABEL, total) as progress:
        return byte_pair_tokenizer(_spread(_texts(split, progress), sample_bytes / max(total, 1)), vocab_size)


def _texts(split: Split, progress: ByteProgress) -> Iterator[str]:
    for segment in split:
        for piece in pieces(segment.blocks(), BEFORE_WHITE_SPACE, segment.document.name):
            progress.advance(len(piece.encode()))
            yield piece


def _spread(texts: Iterator[str], share: float) -> Iterator[str]:
    read = taken = 0
    for text in texts:
        n_bytes = len(text.encode())
        read += n_bytes
        if share >= 1 or taken + n_bytes <= read * share:
            taken += n_bytes
            yield text


def train_on_slices(
    slices: list[Slice], text_field: str, shares: Shares, vocab_size: int, sample_bytes: int
) -> Tokenizer:
    """Byte-pair merges from documents of the training split: those that each slice begins with, up to its share.

    The slices' shares are as their sizes on disk, so that how many processes there are decides nothing.
    """
    weights = [piece.weight for piece in slices]
    if not all(weights):  # Not known of all: equal shares.
        weights = [1] * len(slices)
    total = sum(weights)
    with byte_progress(LABEL, sample_bytes) as progress:

        def texts() -> Iterator[str]:
            for piece, weight in zip(slices, weights, strict=True):
                yield from _beginning(piece, text_field, shares, -(-sample_bytes * weight // total), progress)

        return byte_pair_tokenizer(texts(), vocab_size)


def _beginning(piece: Slice, text_field: str, shares: Shares, n_bytes: int, progress: ByteProgress) -> Iterator[str]:
    """The training documents at the beginning of a slice; of a text that is one document, the beginning."""
    if piece.is_one_document and not shares.trains_on(_sum(_first(piece, text_field).blocks)):
        return
    for record in records(piece, text_field, lambda _: None):
        if not piece.is_one_document and not shares.trains_on(_sum(record.blocks)):
            continue
        for text in pieces(record.blocks, BEFORE_WHITE_SPACE, record.name):
            if n_bytes <= 0:
                return
            n_bytes -= len(text.encode())
            progress.advance(len(text.encode()))
            yield text


def _first(piece: Slice, text_field: str) -> Record:
    return next(records(piece, text_field, lambda _: None))


def _sum(blocks: Iterable[str]) -> bytes:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block.encode())
    return digest.digest()
