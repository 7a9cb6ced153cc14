"""The files that a corpus stands for: what each holds, how it is packed, and when it changes."""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from tinytf.data.cache import written_whole
from tinytf.data.download import fetch, is_url
from tinytf.data.progress import byte_progress
from tinytf.data.remote import is_many, is_remote, listing, open_remote
from tinytf.data.shakespeare import CLEANED_SHA256
from tinytf.data.unpacking import PACKED, Counted, unpacked
from tinytf.errors import UserError

NAMES = (*CLEANED_SHA256, "python-docs")
"""Corpora that come with a package."""
TEXTS = (".txt", ".md")
RECORDS = (".jsonl", ".parquet")
BUFFER = 1 << 18


@dataclass(frozen=True)
class TextFile:
    """A file of text, or of records with a text each. Plain values: it travels to other processes.

    Attributes:
        path: of this machine, or an address.
        kind: ``text`` (one document), ``jsonl`` or ``parquet`` (one a record).
        packed: ``.gz``, ``.zst`` or nothing.
        size: bytes as it lies there.
        stamp: changes when the file does.
    """

    path: str
    kind: str
    packed: str
    size: int
    stamp: str

    @property
    def is_remote(self) -> bool:
        """Whether it lies behind an address."""
        return is_remote(self.path)

    def identity(self) -> list[Any]:
        """What changes when its content may have, in plain types."""
        path = self.path if self.is_remote else str(Path(self.path).absolute())
        return [path, self.kind, self.packed, self.size, self.stamp]

    def current_stamp(self) -> str:
        """What `stamp` would be now; a remote file's version was fixed when it was listed."""
        return self.stamp if self.is_remote else _stamp(Path(self.path))

    def require_unchanged(self) -> None:
        """Raise UserError where a file of this machine was written to since it was found."""
        if self.current_stamp() != self.stamp:
            raise UserError(f"{self.path}: it changed while it was read: run again")


def kind_of(name: str) -> tuple[str, str]:
    """What a file of this name holds and how it is packed. What has no known ending is plain text."""
    path = PurePosixPath(name.partition("?")[0] if "://" in name else name)
    packed = path.suffix if path.suffix in PACKED else ""
    inner = path.with_suffix("").suffix if packed else path.suffix
    return (inner[1:] if inner in RECORDS else "text"), packed


def is_named_text(name: str) -> bool:
    """Whether a folder's file of this name belongs to a corpus."""
    path = PurePosixPath(name)
    inner = path.with_suffix("").suffix if path.suffix in PACKED else path.suffix
    return inner in TEXTS + RECORDS


def files_of(corpus: str, cache: Path) -> tuple[TextFile, ...]:
    """The files of a path, a folder (those with a known ending, at any depth), a pattern or an address, in order.

    Raises:
        UserError: where there are none, or one cannot be read.
    """
    if is_url(corpus) and not _is_shard(corpus):
        return (local_file(fetch(corpus, cache)),)
    if is_remote(corpus):
        return tuple(_remote_file(*found) for found in listing(corpus, is_named_text))
    return tuple(map(local_file, _local(corpus)))


def _is_shard(address: str) -> bool:
    # Text behind a bare https:// address asks for its checksum; shards, which may be thousands, are told apart by
    # what the server says of them.
    return address.startswith("http") and "#" not in address and (kind_of(address) != ("text", "") or is_many(address))


def _local(corpus: str) -> list[Path]:
    path = Path(corpus).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if is_named_text(file.name) and file.is_file())
        if not found:
            raise UserError(
                f"corpus {corpus}: the folder holds no {' or '.join('*' + end for end in TEXTS)} file, and no "
                f"{' or '.join(RECORDS)} one (each may end in {' or '.join(PACKED)} too)"
            )
        return found
    if not path.exists() and glob.has_magic(corpus):
        # Path.glob would refuse a pattern that begins at the root.
        matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
        found = sorted(file for file in matches if file.is_file())
        if not found:
            raise UserError(f"corpus {corpus}: the pattern matches no file")
        return found
    if not path.is_file():
        raise UserError(f"corpus {corpus}: there is no such file or folder, and the known names are {', '.join(NAMES)}")
    return [path]


def local_file(path: Path) -> TextFile:
    """A file of this machine.

    Raises:
        UserError: where it cannot be read.
    """
    try:
        with path.open("rb"):
            return TextFile(str(path), *kind_of(path.name), path.stat().st_size, _stamp(path))
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror})") from error


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def kept_here(file: TextFile, cache: Path) -> TextFile:
    """The same file on this machine: a remote one is copied into the cache, once for each version."""
    if not file.is_remote:
        return file
    version = hashlib.sha256(json.dumps(file.identity()).encode()).hexdigest()
    path = cache / "downloads" / version / PurePosixPath(file.path).name
    if not path.is_file():
        _fetch(file, path)
    return local_file(path)


def _fetch(file: TextFile, path: Path) -> None:
    label = f"fetching {path.name}"
    with open_remote(file.path) as source, byte_progress(label, file.size) as progress, written_whole(path) as copy:
        while block := source.read(BUFFER):
            copy.write(block)
            progress.advance(len(block))
        if file.size and progress.done != file.size:
            raise UserError(f"{file.path}: {progress.done:,} of its {file.size:,} bytes came: run again")


def _remote_file(address: str, size: int, stamp: str) -> TextFile:
    return TextFile(address, *kind_of(address), size, stamp)


@contextmanager
def opened(file: TextFile, on_read: Callable[[int], None] | None = None) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked.

    Args:
        file: which.
        on_read: called with the number of bytes, as they lie in the file, of each read.

    Raises:
        UserError: where what comes is damaged or cut short, or an address fails.
    """
    with open_remote(file.path) if file.is_remote else Path(file.path).open("rb") as raw:
        try:
            source = raw if on_read is None else io.BufferedReader(Counted(raw, on_read), BUFFER)
            yield unpacked(source, file.packed, file.path)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{file.path}: it is damaged or cut short ({error})") from error
