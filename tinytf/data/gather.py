"""Parts put together: documents in a random order, each in its split, an end-of-text token after each.

An external sort. A document's place in the order is a number drawn from its text, the parts' indexes are sorted by
it, and one stretch of numbers after the other is read from all of them: memory holds a stretch, however much there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tinytf.data.cache import written_whole
from tinytf.data.parts import PartFiles
from tinytf.data.progress import ByteProgress, byte_progress
from tinytf.data.splits import WORD, Shares
from tinytf.data.store import TokenStore, describe_store

STRETCH = 1 << 22
PER_PART = 1 << 12
"""Tokens put in order at a time: so many, or where the parts are thousands so many of each, for each is opened."""
CHUNK = 1 << 20
"""Tokens of one document held at a time."""
Table = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Source:
    """A part on disk, and where its documents go.

    Attributes:
        into: the one split for all of them; None sends each where its number says.
    """

    files: PartFiles
    dtype: str
    into: str | None


@dataclass
class _Output:
    file: BinaryIO
    tokens: int = 0
    bytes: int = 0
    documents: int = 0


def gather(
    folder: Path, key: str, sources: list[Source], shares: Shares, names: tuple[str, ...], separator: int,
    dtype: str, table: Table | None,
) -> TokenStore:  # fmt: skip
    """Write the token ids of every split.

    Args:
        folder, key: of the store.
        sources: the parts of all corpora.
        shares: for the parts that are not for one split.
        names: the splits, in order.
        separator: stands after each document.
        dtype: of the store's ids.
        table: the id of each code point, where the parts hold those.
    """
    edges, bounds = _edges(sources)
    end = np.array([separator], dtype=dtype).tobytes()
    total = sum(source.files.path("ids").stat().st_size for source in sources)
    with ExitStack() as files, byte_progress("putting documents in order", total) as progress:
        outputs = {name: _Output(files.enter_context(written_whole(folder / f"{name}.bin"))) for name in names}
        for number in range(bounds):
            for document in _stretch(sources, [each[number : number + 2] for each in edges], shares):
                output = outputs[document.split]
                _copy(output, document.chunks, table, dtype, progress)
                output.file.write(end)
                output.tokens += 1
                output.bytes += document.bytes
                output.documents += 1
    tokens, sizes, documents = (
        {name: getattr(output, what) for name, output in outputs.items()} for what in ("tokens", "bytes", "documents")
    )
    return describe_store(folder, key, dtype, tokens, sizes, documents)


def _edges(sources: list[Source]) -> tuple[list[npt.NDArray[np.int64]], int]:
    """Where each part's index is cut, [stretches + 1] for each, and the number of stretches."""
    tokens = sum(source.files.path("ids").stat().st_size // np.dtype(source.dtype).itemsize for source in sources)
    count = max(1, -(-tokens // max(STRETCH, PER_PART * len(sources))))
    bounds = np.array([number * WORD // count for number in range(1, count)], dtype=np.uint64)
    edges = []
    for source in sources:
        order = source.files.index()[0]
        edges.append(np.array([0, *np.searchsorted(order, bounds), len(order)], dtype=np.int64))
    return edges, count


@dataclass(frozen=True)
class _Document:
    split: str
    bytes: int
    chunks: Iterable[npt.NDArray[Any]]


def _stretch(sources: list[Source], cuts: list[npt.NDArray[np.int64]], shares: Shares) -> list[_Document]:
    """The documents of a stretch, in their order."""
    orders, documents = [], []
    for source, (first, last) in zip(sources, cuts, strict=True):
        if first < last:
            rows = np.array(source.files.index()[:, first:last])
            orders.append(rows[0])
            documents += _read(source, rows, shares)
    # Stable: documents of the same text at the same place of two files come in the files' order.
    order = np.argsort(np.concatenate([np.empty(0, np.uint64), *orders]), kind="stable")
    return [documents[place] for place in order.tolist()]


def _read(source: Source, rows: npt.NDArray[np.uint64], shares: Shares) -> list[_Document]:
    """Documents of one part. Not memory-mapped: the pages of all parts would be held until the system wants them."""
    size = np.dtype(source.dtype).itemsize
    splits = [source.into] * rows.shape[1] if source.into else shares.split_of(rows[1]).tolist()
    starts, counts, sizes = (row.astype(np.int64).tolist() for row in rows[2:])
    chunks: list[Iterable[npt.NDArray[Any]]] = [()] * len(starts)
    with source.files.path("ids").open("rb") as file:
        for place in np.argsort(rows[2]).tolist():  # From the front to the back of the file.
            if counts[place] > CHUNK:
                chunks[place] = _long(source, starts[place], counts[place])
                continue
            file.seek(starts[place] * size)
            chunks[place] = [np.frombuffer(file.read(counts[place] * size), source.dtype)]
    return [_Document(*each) for each in zip(splits, sizes, chunks, strict=True)]


def _long(source: Source, start: int, count: int) -> Iterator[npt.NDArray[Any]]:
    """A document too long to be held, when its turn comes."""
    size = np.dtype(source.dtype).itemsize
    with source.files.path("ids").open("rb") as file:
        file.seek(start * size)
        for done in range(0, count, CHUNK):
            yield np.frombuffer(file.read(min(CHUNK, count - done) * size), source.dtype)


def _copy(
    output: _Output, chunks: Iterable[npt.NDArray[Any]], table: Table | None, dtype: str, progress: ByteProgress
) -> None:
    for chunk in chunks:
        ids = chunk if table is None else table[chunk]
        output.file.write(ids.astype(dtype, copy=False).tobytes())
        output.tokens += len(ids)
        progress.advance(chunk.nbytes)
