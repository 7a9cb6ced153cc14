"""What one slice of a corpus becomes on disk: its documents' ids in the order they were read, and an index of them."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from tinytf.data.cache import digest, written_whole
from tinytf.data.corpus import code_points
from tinytf.data.permutation import mix
from tinytf.data.pieces import Encoder
from tinytf.data.records import Advance, Slice, records
from tinytf.data.splits import WORD, number_of

FORMAT = 1
COLUMNS = 5
"""Of an index: order, split, start, tokens, bytes; 40 bytes a document."""


@dataclass(frozen=True)
class Part:
    """A slice that is done.

    Attributes:
        sha256: of its documents' checksums, in order.
        documents, bytes: how many, and their UTF-8; without the empty ones.
        empty: documents without text, which are left out.
        alphabet: the characters that occur, sorted.
        dtype: of the ids.
    """

    sha256: str
    documents: int
    bytes: int
    empty: int
    alphabet: str
    dtype: str


@dataclass(frozen=True)
class PartFiles:
    """Where a part lies. The description is written last: where it is, all is there."""

    folder: Path
    name: str

    @classmethod
    def of(cls, folder: Path, piece: Slice, text_field: str) -> PartFiles:
        """The files of a slice's part in a folder."""
        return cls(folder, digest({"format": FORMAT, "slice": piece.identity(), "text_field": text_field})[:32])

    def path(self, ending: str) -> Path:
        """The file with this ending."""
        return self.folder / f"{self.name}.{ending}"

    def read(self) -> Part | None:
        """The part, if it was finished."""
        try:
            return Part(**json.loads(self.path("json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def index(self) -> npt.NDArray[np.uint64]:
        """[COLUMNS, documents], sorted by order, left on disk until it is touched."""
        rows: npt.NDArray[np.uint64] = np.load(self.path("index.npy"), mmap_mode="r")
        return rows

    def remove(self) -> None:
        """Delete them all."""
        for ending in ("json", "index.npy", "ids"):
            self.path(ending).unlink(missing_ok=True)


def make_part(
    files: PartFiles, piece: Slice, text_field: str, encode: Encoder | None, dtype: str, advance: Advance
) -> Part:
    """Tokenise a slice. Memory holds a block of text and its ids, not the slice.

    Args:
        files: where to.
        piece: what.
        text_field: see `tinytf.data.records.records`.
        encode: gives the ids; None writes code points, for an alphabet that is not known before all is read.
        dtype: of the ids.
        advance: called with the bytes of the slice that each step took.
    """
    seen = np.zeros(0x110000, dtype=bool)
    sums = hashlib.sha256()
    empty = n_bytes = 0
    with written_whole(files.path("ids")) as ids, tempfile.TemporaryFile() as rows:
        start = 0
        for record in records(piece, text_field, advance):
            text = _Read(record.blocks, seen)
            count = sum(_write(ids, block, dtype) for block in _encoded(encode, text, record.name))
            if not text.bytes:
                empty += 1
                continue
            sums.update(text.sha256.digest())
            rows.write(_row(text, record.place, start, count))
            start, n_bytes = start + count, n_bytes + text.bytes
        index = _sorted(rows)
    piece.file.require_unchanged()
    with written_whole(files.path("index.npy")) as file:
        np.save(file, index)
    part = Part(
        sums.hexdigest(), index.shape[1], n_bytes, empty, "".join(map(chr, np.flatnonzero(seen).tolist())), dtype
    )
    with written_whole(files.path("json")) as file:
        file.write(json.dumps(asdict(part)).encode())
    return part


class _Read:
    """A document's blocks as they go to the encoder, taking down what they were."""

    def __init__(self, blocks: Iterable[str], seen: npt.NDArray[np.bool_]) -> None:
        self._blocks, self._seen = blocks, seen
        self.sha256, self.bytes = hashlib.sha256(), 0

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            raw = block.encode()
            self.sha256.update(raw)
            self.bytes += len(raw)
            if block.isascii():
                self._seen[np.frombuffer(raw, dtype=np.uint8)] = True
            else:
                self._seen[code_points(block)] = True
            yield block


def _encoded(encode: Encoder | None, text: _Read, where: str) -> Iterator[npt.NDArray[np.uint32]]:
    return encode(text, where) if encode else map(code_points, text)


def _write(file: IO[bytes], ids: npt.NDArray[np.uint32], dtype: str) -> int:
    file.write(ids.astype(dtype, copy=False).tobytes())
    return len(ids)


def _row(text: _Read, place: int, start: int, count: int) -> bytes:
    """The split is a function of the text alone, so that it never moves, and no text is in two.

    The order is one of the place too, or texts that occur twice would follow each other.
    """
    digest = text.sha256.digest()
    order = (int.from_bytes(digest[8:16], "little") + place) % WORD
    return struct.pack("<5Q", order, number_of(digest), start, count, text.bytes)


def _sorted(rows: IO[bytes]) -> npt.NDArray[np.uint64]:
    rows.flush()
    rows.seek(0)
    index = np.frombuffer(rows.read(), dtype="<u8").reshape(-1, COLUMNS).T.astype(np.uint64)
    index[0] = mix(index[0])
    # Stable, so that equal keys keep the order in which they were read.
    return np.ascontiguousarray(index[:, np.argsort(index[0], kind="stable")])
