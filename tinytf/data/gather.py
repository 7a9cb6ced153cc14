"""Parts put together: documents in a random order, each in its split, an end-of-text token after each.

An external sort. A document's place in the order is a number drawn from its text, the parts' indexes are sorted by
it, and one stretch of numbers after the other is read from all of them: memory holds a stretch, however much there is.
"""

from __future__ import annotations

from collections.abc import Iterator
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

STRETCH = 1 << 24
"""Tokens put in order at a time."""
CHUNK = 1 << 22
"""Tokens of one document copied at a time."""
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
            for name, n_bytes, chunks in _stretch(sources, [each[number : number + 2] for each in edges], shares):
                _copy(outputs[name], chunks, table, dtype, progress)
                outputs[name].file.write(end)
                outputs[name].tokens += 1
                outputs[name].bytes += n_bytes
                outputs[name].documents += 1
    tokens, sizes, documents = (
        {name: getattr(output, what) for name, output in outputs.items()} for what in ("tokens", "bytes", "documents")
    )
    return describe_store(folder, key, dtype, tokens, sizes, documents)


def _edges(sources: list[Source]) -> tuple[list[npt.NDArray[np.int64]], int]:
    """Where each part's index is cut, [stretches + 1] for each, and the number of stretches."""
    tokens = sum(source.files.path("ids").stat().st_size // np.dtype(source.dtype).itemsize for source in sources)
    count = max(1, -(-tokens // STRETCH))
    bounds = np.array([number * WORD // count for number in range(1, count)], dtype=np.uint64)
    edges = []
    for source in sources:
        order = source.files.index()[0]
        edges.append(np.array([0, *np.searchsorted(order, bounds), len(order)], dtype=np.int64))
    return edges, count


def _stretch(
    sources: list[Source], cuts: list[npt.NDArray[np.int64]], shares: Shares
) -> Iterator[tuple[str, int, Iterator[npt.NDArray[Any]]]]:
    """Split, bytes and ids of each document of a stretch, in their order."""
    rows, splits, places = [], [], []
    opened: dict[int, npt.NDArray[Any]] = {}
    for place, (source, (first, last)) in enumerate(zip(sources, cuts, strict=True)):
        if first == last:
            continue
        taken = np.array(source.files.index()[:, first:last])
        rows.append(taken)
        splits.append(np.full(last - first, source.into) if source.into else shares.split_of(taken[1]))
        places.append(np.full(last - first, place))
        opened[place] = source.files.ids(source.dtype)
    if not rows:
        return
    columns, names, parts = np.concatenate(rows, axis=1), np.concatenate(splits), np.concatenate(places)
    # Stable: documents of the same text at the same place of two files come in the files' order.
    order = np.argsort(columns[0], kind="stable")
    columns = columns[:, order].astype(np.int64)
    for name, part, start, tokens, n_bytes in zip(
        names[order].tolist(), parts[order].tolist(), *(columns[row].tolist() for row in (2, 3, 4)), strict=True
    ):
        ids = opened[part]
        yield name, n_bytes, (ids[at : min(at + CHUNK, start + tokens)] for at in range(start, start + tokens, CHUNK))


def _copy(
    output: _Output, chunks: Iterator[npt.NDArray[Any]], table: Table | None, dtype: str, progress: ByteProgress
) -> None:
    for chunk in chunks:
        ids = chunk if table is None else table[chunk]
        output.file.write(ids.astype(dtype, copy=False).tobytes())
        output.tokens += len(ids)
        progress.advance(chunk.nbytes)
