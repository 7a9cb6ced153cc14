"""2. Documents: plain texts in blocks, and the documents of records, one at a time."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tinytf.data.examples.records import KINDS, Document, Records, kind_of_record
from tinytf.data.sources import find_files
from tinytf.data.sources.addresses import keep_local
from tinytf.data.sources.builtin import BUILTIN, builtin_text
from tinytf.data.sources.files import BLOCK, SourceFile, byte_progress, named_errors, open_raw, open_source, skip
from tinytf.data.sources.hub import HubFile, datasets_library, failed
from tinytf.errors import UserError
from tinytf.utils.text import read_json

LONGEST_LINE = 1 << 26
"""Bytes of a line of .jsonl: a few times as much is in memory at once. The complete Shakespeare has 5 MB."""

PARQUET_ROWS = 100
"""Rows that are in memory at a time."""

SHARD_BYTES = 16 << 20
"""Bytes of a .jsonl file that are tokenized in one go, and lost if the process is killed meanwhile."""


# -- plain text ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextDocument:
    """One plain text: its name in messages, its length in bytes, and how to open it.

    Attributes:
        require_unchanged: raises UserError if the file was written to since it was found.
    """

    name: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]
    require_unchanged: Callable[[], None]


@dataclass(frozen=True)
class Text:
    """A corpus of plain text that was read once from end to end: valid UTF-8, not empty.

    Attributes:
        sha256: of the bytes if there is one document (what ``sha256sum`` prints); of the documents' sums, one per
            line, if there are more.
        code_points: those that occur, sorted.
    """

    corpus: str
    documents: tuple[TextDocument, ...]
    sha256: str
    n_bytes: int
    code_points: npt.NDArray[np.int64]


def text_documents(corpus: str, cache: Path) -> tuple[TextDocument, ...]:
    """The documents of a corpus of plain text; UserError if it stands for nothing that can be read as one text."""
    if corpus in BUILTIN:
        return (_in_memory(corpus, builtin_text(corpus)),)
    # Plain text is read at every start, so that one from far away is copied here once.
    return tuple(_of_file(keep_local(file, cache)) for file in find_files(corpus, cache))


def read_blocks(document: TextDocument, start: int = 0, end: int | None = None) -> Iterator[str]:
    """The text between two byte offsets, which must be character boundaries, in blocks of about a megabyte.

    Raises:
        UserError: at bytes that are not UTF-8, naming their line (from ``start`` on), and if the file has become
            shorter.
    """
    end = document.size if end is None else end
    position, line, rest = start, 1, b""
    with document.open() as file:
        skip(file, start)
        while position + len(rest) < end:
            fresh = file.read(min(BLOCK, end - position - len(rest)))
            if not fresh:
                raise UserError(f"{document.name}: it became shorter while it was read: run again")
            raw = rest + fresh
            text, used = _decode(document.name, raw, position, line, last=position + len(raw) >= end)
            position, line, rest = position + used, line + text.count("\n"), raw[used:]
            yield text


def scan(corpus: str, cache: Path) -> Text:
    """Read a corpus of plain text once: checksum, length, alphabet.

    Raises:
        UserError: as `text_documents` and `read_blocks`, and if there is no text at all.
    """
    documents = text_documents(corpus, cache)
    total = sum(document.size for document in documents)
    if not total:
        files = "1 file" if len(documents) == 1 else f"{len(documents)} files"
        raise UserError(f"corpus {corpus}: {files} with no text at all")
    seen = np.zeros(0x110000, dtype=bool)
    sums = []
    with byte_progress(f"reading {corpus}", total) as progress:
        for document in documents:
            digest = hashlib.sha256()
            for block in read_blocks(document):
                raw = block.encode()
                digest.update(raw)
                seen[code_points(block)] = True
                progress.update(len(raw))
            sums.append(digest.hexdigest())
    sha256 = sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()
    return Text(corpus, documents, sha256, total, np.flatnonzero(seen))


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The characters' numbers, [characters]."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _decode(name: str, raw: bytes, position: int, line: int, last: bool) -> tuple[str, int]:
    try:
        return raw.decode("utf-8"), len(raw)
    except UnicodeDecodeError as error:
        cut_short = error.end == len(raw) and error.reason == "unexpected end of data"
        if cut_short and not last:
            return raw[: error.start].decode("utf-8"), error.start
        line += raw[: error.start].count(b"\n")
        raise UserError(
            f"{name}:{line}: it is not UTF-8 (0x{raw[error.start]:02x} at byte {position + error.start}, "
            f"{error.reason}): convert the file, for example with iconv"
        ) from None


def _in_memory(name: str, text: str) -> TextDocument:
    raw = text.encode()
    return TextDocument(name, len(raw), lambda: io.BytesIO(raw), lambda: None)


def _of_file(file: SourceFile) -> TextDocument:
    if file.kind != "text":
        raise UserError(
            f"{file.path}: it holds documents, which are split one by one: leave data.split_by out, or set document"
        )
    size = file.size
    if file.is_compressed:
        with open_source(file) as source:
            size = sum(len(block) for block in iter(lambda: source.read(BLOCK), b""))
    return TextDocument(file.path, size, lambda: open_source(file), file.require_unchanged)


# -- records -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """What one process tokenizes at a time: the lines of a .jsonl that begin in these bytes, else all of a file.

    Attributes:
        weight: bytes on disk, for progress and for a share of the tokenizer's sample; 0 if unknown.
    """

    file: SourceFile | HubFile
    start: int
    end: int
    weight: int

    def identity(self) -> list[Any]:
        """What changes when its content may have, in plain types."""
        return [*self.file.identity(), self.start, self.end]

    @property
    def is_one_document(self) -> bool:
        """Whether it is one plain text, of any length, that is never in memory as a whole."""
        return isinstance(self.file, SourceFile) and self.file.kind == "text"


def shards_of(file: SourceFile | HubFile) -> list[Shard]:
    """The shards of a file, in order. Only a .jsonl file of this machine can be read from the middle."""
    if isinstance(file, HubFile):
        return [Shard(file, 0, 1, 0)]
    if file.kind == "parquet" and file.is_compressed:
        raise UserError(f"{file.path}: .parquet is compressed inside, and cannot be read when compressed again")
    if file.kind == "jsonl" and not file.is_compressed and not file.is_remote:
        starts = range(0, file.size, SHARD_BYTES)
        ends = [*starts[1:], file.size][: len(starts)]  # Of an empty file there is no shard.
        return [Shard(file, start, end, end - start) for start, end in zip(starts, ends, strict=True)]
    return [Shard(file, 0, file.size, file.size)]


def read_documents(shard: Shard, records: Records) -> Iterator[Document]:
    """The documents of a shard, in their order; each must be read before the next.

    Raises:
        UserError: naming file and line or row, if something is no record as the others are.
    """
    file = shard.file
    if isinstance(file, SourceFile) and file.kind == "text":
        if records.kind != "text":
            raise UserError(f"{file.path}: it is a plain text, but the corpus begins with {KINDS[records.kind]}")
        with open_source(file) as source:
            yield Document(file.path, _blocks(source, file.path))
        return
    for record, where in _records(shard, records):
        yield records.document(record, where)


def kind_of_corpus(shards: Iterable[Shard], text_field: str) -> str:
    """What the first record of a corpus holds, as which all others are read; ``text`` if there is none."""
    for shard in shards:
        file = shard.file
        if isinstance(file, SourceFile) and file.kind == "text":
            return "text"
        if isinstance(file, SourceFile) and file.kind == "parquet":
            with _parquet(file) as table:
                return kind_of_record(table.schema_arrow.names, text_field)
        for record, _ in _records(shard, None):
            return kind_of_record(record if isinstance(record, dict) else (), text_field)
    return "text"


def _records(shard: Shard, records: Records | None) -> Iterator[tuple[Any, object]]:
    file = shard.file
    if isinstance(file, HubFile):
        for number, row in enumerate(file.rows(), 1):
            yield row, f"{file.corpus}, file {file.number + 1}, row {number:,}"
    elif file.kind == "jsonl":
        yield from _json_lines(shard, file)
    elif records:
        yield from _parquet_rows(file, records)


def _json_lines(shard: Shard, file: SourceFile) -> Iterator[tuple[Any, object]]:
    # Line by line with the standard library. datasets' own reader of JSON lines was seen to change texts: a column in
    # which all look like times comes back as times (2020-01-01T00:00:00 as 2020-01-01 00:00:00), and one number
    # among texts puts quotation marks around all of them.
    with open_source(file) as source:
        position = 0
        if shard.start:  # The line that reaches over the start belongs to the shard before.
            source.seek(shard.start - 1)
            position = shard.start - 1 + len(source.readline())
        whole = (shard.start, shard.end) == (0, file.size)
        number, first = 0, position
        while line := source.readline(LONGEST_LINE):
            if position >= shard.end and not whole:
                return
            number += 1
            where = LineOf(file.path, first, number)
            if len(line) == LONGEST_LINE:
                raise UserError(f"{where}: the line has more than {LONGEST_LINE:,} bytes; divide the document")
            if not line.isspace():
                yield read_json(line, where), where
            position += len(line)


@dataclass(frozen=True)
class LineOf:
    """A line of a file, counted from a byte offset on: ``file:number`` in messages.

    How many lines stand before the offset is counted only for a message: for each shard of a file it would mean to
    read all that is before it.
    """

    path: str
    offset: int
    number: int

    def __str__(self) -> str:
        before = 0
        if self.offset:
            with Path(self.path).open("rb") as file:
                while self.offset > file.tell():
                    before += file.read(min(BLOCK, self.offset - file.tell())).count(b"\n")
        return f"{self.path}:{before + self.number}"


@contextmanager
def _parquet(file: SourceFile) -> Iterator[Any]:
    # By pyarrow itself: datasets decodes a row group whole, in which 1.2 MB of a file can become 12 GB of text.
    datasets_library(file.path)
    from pyarrow import parquet

    if not file.size and not file.is_remote:
        raise UserError(f"{file.path}: it is no .parquet file (it is empty)")
    with named_errors(file.path):
        raw = open_raw(file.path)
    with raw:
        try:
            table = parquet.ParquetFile(raw)
        except Exception as error:
            raise failed(file.path, error, "it is no .parquet file") from error
        yield table


def _parquet_rows(file: SourceFile, records: Records) -> Iterator[tuple[Any, object]]:
    with _parquet(file) as table:
        records.require_fields(table.schema_arrow.names, file.path)
        # These columns alone: the others may be a hundred times as large.
        columns = [name for name in table.schema_arrow.names if name in (*records.fields, "tools")]
        batches = table.iter_batches(PARQUET_ROWS, columns=columns)
        number = 0
        while (rows := _next_rows(batches, file, number)) is not None:
            for row in rows:
                number += 1
                yield row, f"{file.path}, row {number:,}"


def _next_rows(batches: Iterator[Any], file: SourceFile, number: int) -> list[dict[str, Any]] | None:
    try:
        batch = next(batches, None)
        return None if batch is None else list(batch.to_pylist())
    except Exception as error:  # Pages are decoded, or fetched, as they are reached.
        raise failed(f"{file.path}, after row {number:,}", error, "it is damaged or cannot be read") from error


def _blocks(file: BinaryIO, name: str) -> Iterator[str]:
    """The text of a file of unknown length, in blocks of about a megabyte; UserError at bytes that are not UTF-8."""
    position, line, rest, fresh = 0, 1, b"", b"more"
    while fresh:
        fresh = file.read(BLOCK)
        raw = rest + fresh
        text, used = _decode(name, raw, position, line, last=not fresh)
        position, line, rest = position + used, line + text.count("\n"), raw[used:]
        if text:
            yield text
