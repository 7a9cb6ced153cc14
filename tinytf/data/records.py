"""Documents out of slices of files: a slice is what one process reads at a time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from tinytf.data.corpus import decoded
from tinytf.data.files import TextFile, opened
from tinytf.data.hub import HubShard, hub_rows
from tinytf.errors import UserError

SLICE = 16 << 20
"""Bytes of a file that are tokenised in one go, and lost where the process is killed meanwhile."""
READ_AT_ONCE = 1 << 20
"""Bytes of a row group's column, which parquet would otherwise read whole."""

ROWS = 256

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Slice:
    """Part of a file: of .jsonl the lines that begin in these bytes, of .parquet these row groups, else all of it.

    Attributes:
        weight: bytes on disk, for progress and shares; 0 where they are not known.
    """

    file: TextFile | HubShard
    start: int
    end: int
    weight: int

    def identity(self) -> list[Any]:
        """What changes when its content may have, in plain types."""
        return [*self.file.identity(), self.start, self.end]

    @property
    def is_one_document(self) -> bool:
        """Whether it is one text, of any length, that is not held whole."""
        return isinstance(self.file, TextFile) and self.file.kind == "text"


@dataclass(frozen=True)
class Record:
    """One document.

    Attributes:
        blocks: its text: a list, or where `Slice.is_one_document` what is read once.
        place: where in its file it is; what tells documents of the same text apart.
    """

    blocks: Iterable[str]
    place: int
    name: str


def slices_of(file: TextFile | HubShard) -> list[Slice]:
    """The slices of a file, in order. One that is packed or far away can only be read from its beginning."""
    if isinstance(file, HubShard):
        return [Slice(file, 0, 1, 0)]
    if file.kind == "parquet" and file.packed:
        raise UserError(f"{file.path}: .parquet is packed inside already, and cannot be read when packed again")
    if file.kind == "jsonl" and not file.packed and not file.is_remote:
        starts = range(0, file.size, SLICE)
        ends = [*starts[1:], file.size][: len(starts)]  # Of an empty file there is no slice.
        return [Slice(file, start, end, end - start) for start, end in zip(starts, ends, strict=True)]
    if file.kind == "parquet" and not file.is_remote:
        return _row_groups(file)
    return [Slice(file, 0, file.size, file.size)]


def records(piece: Slice, text_field: str, advance: Advance) -> Iterator[Record]:
    """The documents of a slice, one at a time; each must be read before the next.

    Args:
        piece: which.
        text_field: the field that holds the text.
        advance: called with the bytes of the slice that each step took.

    Raises:
        UserError: naming file and place, where something is no record with such a field.
    """
    file = piece.file
    if isinstance(file, HubShard):
        yield from _hub(file, text_field, advance)
    elif file.kind == "jsonl":
        yield from _lines(piece, file, text_field, advance)
    elif file.kind == "parquet":
        yield from _rows(piece, file, text_field, advance)
    else:
        with opened(file, advance) as source:
            yield Record(decoded(source, file.path), 0, file.path)


def _lines(piece: Slice, file: TextFile, text_field: str, advance: Advance) -> Iterator[Record]:
    with opened(file, advance) as source:
        sliced = (piece.start, piece.end) != (0, file.size)
        place = _first_line(source, piece.start) if sliced else 0
        for line in source:
            if sliced and place >= piece.end:
                return
            if not line.isspace():
                yield _record(partial(json.loads, line), text_field, place, f"{file.path}, line at byte {place:,}")
            place += len(line)


def _first_line(source: BinaryIO, start: int) -> int:
    """Go to the first line that begins at or after ``start``: the one that reaches over it is the slice before's."""
    if not start:
        return 0
    source.seek(start - 1)
    return start - 1 + len(source.readline())


def _record(parse: Callable[[], Any], text_field: str, place: int, where: str) -> Record:
    try:
        content = parse()
    except ValueError as error:
        raise UserError(f"{where}: it is not JSON ({error})") from None
    if not isinstance(content, dict) or text_field not in content:
        raise UserError(f"{where}: {_has(content)}, not {text_field!r}: set --data.text_field")
    return Record([_text(content[text_field], text_field, where)], place, where)


def _text(value: Any, text_field: str, where: str) -> str:
    if not isinstance(value, str):
        found = "null" if value is None else f"{value!r:.40}"
        raise UserError(f"{where}: its field {text_field!r} holds {found}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: its text holds half a surrogate pair, which is no character") from None
    return value


def _has(content: Any) -> str:
    if not isinstance(content, dict):
        return f"it is a {type(content).__name__}"
    return f"its fields are {', '.join(map(repr, content))}" if content else "it has no field"


def _hub(shard: HubShard, text_field: str, advance: Advance) -> Iterator[Record]:
    for number, row in enumerate(hub_rows(shard)):
        where = f"{shard.corpus}, shard {shard.number}, row {number:,}"
        record = _record(lambda row=row: row, text_field, number, where)  # type: ignore[misc]
        advance(sum(len(block.encode()) for block in record.blocks))
        yield record


def _parquet(source: Any, name: str) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{name}: .parquet needs the extra corpora: pip install 'tinytf[corpora]'") from None
    try:
        return parquet.ParquetFile(source, memory_map=False, pre_buffer=False, buffer_size=READ_AT_ONCE)
    except (ArrowException, OSError) as error:
        raise UserError(f"{name}: it is no .parquet file ({' '.join(str(error).split())})") from error


@contextmanager
def _at_hand(file: TextFile) -> Iterator[BinaryIO]:
    """A file to be read back and forth; a remote one, whose server may not let it, is brought here meanwhile."""
    with opened(file) as source:
        if not file.is_remote:
            yield source
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.seek(0)
            yield copy


def _row_groups(file: TextFile) -> list[Slice]:
    with opened(file) as source:
        table = _parquet(source, file.path).metadata
        sizes = [_packed_size(table.row_group(number)) for number in range(table.num_row_groups)]
    slices, first, weight = [], 0, 0
    for number, size in enumerate(sizes, 1):
        weight += size
        if weight >= SLICE or number == len(sizes):
            slices.append(Slice(file, first, number, weight))
            first, weight = number, 0
    return slices


def _packed_size(group: Any) -> int:
    return sum(group.column(number).total_compressed_size for number in range(group.num_columns))


def _rows(piece: Slice, file: TextFile, text_field: str, advance: Advance) -> Iterator[Record]:
    with _at_hand(file) as source:
        table = _parquet(source, file.path)
        names = table.schema_arrow.names
        if text_field not in names:
            raise UserError(f"{file.path}: its fields are {', '.join(map(repr, names))}, not {text_field!r}: "
                            "set --data.text_field")  # fmt: skip
        groups = range(piece.start, table.metadata.num_row_groups if file.is_remote else piece.end)
        place = sum(table.metadata.row_group(number).num_rows for number in range(piece.start))
        total = max(1, sum(table.metadata.row_group(number).num_rows for number in groups))
        last = place + total
        done = 0
        for batch in table.iter_batches(ROWS, row_groups=list(groups), columns=[text_field]):
            for value in batch.column(0).to_pylist():
                where = f"{file.path}, row {place:,}"
                yield Record([_text(value, text_field, where)], place, where)
                place += 1
            now = piece.weight * (total - (last - place)) // total
            advance(now - done)
            done = now
