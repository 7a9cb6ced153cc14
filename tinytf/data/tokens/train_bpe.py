"""3. Tokens: the byte-pair tokenizer of a text, trained once, on a sample if the text is long, and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tinytf.data.config import cache_write
from tinytf.data.documents import Shard, read_documents
from tinytf.data.examples.records import Document, Records
from tinytf.data.sources.files import byte_progress
from tinytf.data.splits import Split, SplitFractions, split_bytes
from tinytf.data.tokenizer import byte_pair_tokenizer, tokenizer_from_text
from tinytf.data.tokens.encode import BEFORE_WHITE_SPACE, CHUNK, chunks
from tinytf.errors import UserError

LABEL = "reading for the tokenizer"


def cached_tokenizer(path: Path, train: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer under this path, trained if it is not there."""
    try:
        return tokenizer_from_text(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, UserError):
        # Missing, or damaged on the disk: either way it is trained again from the same text.
        tokenizer = train()
        with cache_write(path) as file:
            file.write(tokenizer.to_str().encode())
        return tokenizer


def train_on_split(split: Split, vocab_size: int, sample_bytes: int) -> Tokenizer:
    """Byte-pair merges from the training part alone: what validation measures must not have shaped the tokens.

    Of a longer part every so many-th piece is taken, so that all of it counts.
    """
    total = split_bytes(split)
    # Chunks, 64 Ki characters, unless the sample would hold fewer than 16 of them.
    size = min(CHUNK, max(1, sample_bytes // 16))
    with byte_progress(LABEL, total) as progress:
        return byte_pair_tokenizer(_sample(_pieces(split, size, progress), sample_bytes / max(total, 1)), vocab_size)


def _pieces(split: Split, size: int, progress: Any) -> Iterator[str]:
    for span in split:
        for chunk in chunks(span.blocks(), BEFORE_WHITE_SPACE, span.document.name):
            progress.update(len(chunk.encode()))
            start = 0
            while size < CHUNK and (cut := BEFORE_WHITE_SPACE.search(chunk, start + size)):
                yield chunk[start : cut.start()]
                start = cut.start()
            yield chunk[start:]


def _sample(texts: Iterator[str], fraction: float) -> Iterator[str]:
    read = taken = 0
    for text in texts:
        n_bytes = len(text.encode())
        read += n_bytes
        if fraction >= 1 or taken + n_bytes <= read * fraction:
            taken += n_bytes
            yield text


def train_on_shards(
    shards: list[Shard], records: Records, fractions: SplitFractions, vocab_size: int, sample_bytes: int
) -> Tokenizer:
    """Byte-pair merges from documents of the training split: the first of each shard, up to the shard's share.

    Shares are by size on disk, so that the number of processes decides nothing.
    """
    weights = [shard.weight for shard in shards]
    if not all(weights):  # Not known of all: equal shares.
        weights = [1] * len(shards)
    total = sum(weights)
    with byte_progress(LABEL, sample_bytes) as progress:

        def texts() -> Iterator[str]:
            for shard, weight in zip(shards, weights, strict=True):
                yield from _beginning(shard, records, fractions, -(-sample_bytes * weight // total), progress)

        return byte_pair_tokenizer(texts(), vocab_size)


def _beginning(shard: Shard, records: Records, fractions: SplitFractions, n_bytes: int, progress: Any) -> Iterator[str]:
    """The first training documents of a shard; of a text that is one document, its beginning."""
    if shard.is_one_document:
        sums = [_sha256(document) for document in read_documents(shard, records)]
        if fractions.split_of(sums[0]) != "train":
            return
    for document in read_documents(shard, records):
        if not shard.is_one_document and fractions.split_of(_sha256(document)) != "train":
            continue
        for text in chunks(document.blocks, BEFORE_WHITE_SPACE, document.name):
            if n_bytes <= 0:
                return
            n_bytes -= len(text.encode())
            progress.update(len(text.encode()))
            yield text


def _sha256(document: Document) -> bytes:
    sha256 = hashlib.sha256(document.identity)
    for block in () if document.identity else document.blocks:
        sha256.update(block.encode())
    return sha256.digest()
