"""A corpus is a list of documents, each a name and bytes of UTF-8 that are read in blocks."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tinytf.data.files import TextFile, files_of, kept_here, opened
from tinytf.data.progress import byte_progress
from tinytf.data.shakespeare import CLEANED_SHA256, shakespeare
from tinytf.errors import UserError

BLOCK = 1 << 20
"""Bytes read at a time: what bounds the memory of everything that walks a text."""


@dataclass(frozen=True)
class Document:
    """One text: its name in messages, its length in bytes, and how to open it.

    Attributes:
        stamp: changes when the file behind it does.
    """

    name: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]
    stamp: Callable[[], object]
    stamped: object

    def require_unchanged(self) -> None:
        """Raise UserError where the file was written to since it was found."""
        if self.stamp() != self.stamped:
            raise UserError(f"{self.name}: it changed while it was read: run again")


@dataclass(frozen=True)
class Text:
    """A corpus that was read once from end to end: valid UTF-8, not empty.

    Attributes:
        sha256: of the bytes where there is one document (what ``sha256sum`` prints); of the documents' sums, one a
            line, where there are more.
        codes: the code points that occur, sorted.
    """

    corpus: str
    documents: tuple[Document, ...]
    sha256: str
    n_bytes: int
    codes: npt.NDArray[np.int64]


def documents_of(corpus: str, cache: Path) -> tuple[Document, ...]:
    """The documents a corpus of plain text stands for: a name, a URL with its sha256, a file, a folder or a glob.

    Raises:
        UserError: where it stands for nothing that can be read as one text.
    """
    if corpus in CLEANED_SHA256:
        return (_held(corpus, shakespeare(corpus)),)
    if corpus == "python-docs":
        return (_held(corpus, _python_docs()),)
    # Here the text is read at every start, so that one from far away is brought here once.
    return tuple(_document(kept_here(file, cache)) for file in files_of(corpus, cache))


def read_blocks(document: Document, start: int = 0, end: int | None = None) -> Iterator[str]:
    """The text between two byte offsets, which must be character boundaries, in blocks of about a megabyte.

    Raises:
        UserError: at bytes that are not UTF-8, naming their offset, and where the file has become shorter.
    """
    end = document.size if end is None else end
    position, rest = start, b""
    with document.open() as file:
        skip(file, start)
        while position + len(rest) < end:
            fresh = file.read(min(BLOCK, end - position - len(rest)))
            if not fresh:
                raise UserError(f"{document.name}: it became shorter while it was read: run again")
            raw = rest + fresh
            text, used = _decode(document.name, raw, position, last=position + len(raw) >= end)
            position, rest = position + used, raw[used:]
            yield text


def decoded(file: BinaryIO, name: str) -> Iterator[str]:
    """The text of a file of unknown length, in blocks of about a megabyte.

    Raises:
        UserError: at bytes that are not UTF-8, naming their offset.
    """
    position, rest, fresh = 0, b"", b"more"
    while fresh:
        fresh = file.read(BLOCK)
        raw = rest + fresh
        text, used = _decode(name, raw, position, last=not fresh)
        position, rest = position + used, raw[used:]
        if text:
            yield text


def skip(file: BinaryIO, count: int) -> None:
    """Go on to an offset, by reading where the file cannot seek."""
    if file.seekable():
        file.seek(count)
        return
    while count and (read := len(file.read(min(BLOCK, count)))):
        count -= read


def _decode(name: str, raw: bytes, position: int, last: bool) -> tuple[str, int]:
    try:
        return raw.decode("utf-8"), len(raw)
    except UnicodeDecodeError as error:
        cut_short = error.end == len(raw) and error.reason == "unexpected end of data"
        if cut_short and not last:
            return raw[: error.start].decode("utf-8"), error.start
        raise UserError(
            f"{name}: the bytes at offset {position + error.start} are not UTF-8 "
            f"(0x{raw[error.start]:02x}, {error.reason}): convert the file, for example with iconv"
        ) from None


def scan(corpus: str, cache: Path) -> Text:
    """Read a corpus once: checksum, length, alphabet.

    Raises:
        UserError: as `documents_of` and `read_blocks`, and where there is no text at all.
    """
    documents = documents_of(corpus, cache)
    total = sum(document.size for document in documents)
    if not total:
        raise UserError(f"corpus {corpus}: {_plural(len(documents), 'file')} with no text at all")
    seen = np.zeros(0x110000, dtype=bool)
    sums = []
    with byte_progress(f"reading {corpus}", total) as progress:
        for document in documents:
            digest = hashlib.sha256()
            for block in read_blocks(document):
                raw = block.encode()
                digest.update(raw)
                seen[code_points(block)] = True
                progress.advance(len(raw))
            sums.append(digest.hexdigest())
    whole = sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()
    return Text(corpus, documents, whole, total, np.flatnonzero(seen))


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The characters' numbers, [characters]."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _held(name: str, text: str) -> Document:
    raw = text.encode()
    return Document(name, len(raw), lambda: io.BytesIO(raw), stamp=lambda: None, stamped=None)


def _document(file: TextFile) -> Document:
    if file.kind != "text":
        raise UserError(
            f"{file.path}: it holds documents, which are split one by one: leave data.split_by out, or set document"
        )
    return Document(file.path, _unpacked_size(file), lambda: opened(file), file.current_stamp, file.stamp)


def _unpacked_size(file: TextFile) -> int:
    if not file.packed:
        return file.size
    with opened(file) as source:
        return sum(len(block) for block in iter(lambda: source.read(BLOCK), b""))


@lru_cache(maxsize=1)
def _python_docs() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
