"""1. Sources: a file of a corpus, on this machine or behind an address: what it holds, its version, its bytes."""

from __future__ import annotations

import glob
import io
import logging
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from tinytf.data.sources.builtin import BUILTIN
from tinytf.errors import UserError
from tinytf.utils.files import open_user_file, reason, user_path
from tinytf.utils.text import public

log = logging.getLogger(__name__)

TEXTS = (".txt", ".md")
RECORDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
NOT_READ = (".zip", ".tar", ".tgz", ".7z", ".rar", ".json", ".pdf", ".docx", ".gguf", ".safetensors", ".npy")
"""Endings of files that are neither text nor records: read as text, a model would learn their bytes."""

MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ\x00": ".xz", b"BZh91AY&SY": ".bz2",
         b"PK\x03\x04": ".zip", b"PAR1\x15": ".parquet", b"%PDF-1": ".pdf", b"GGUF": ".gguf"}  # fmt: skip
"""How files of these kinds begin, whatever their name says."""

BLOCK = 1 << 20
"""Bytes read at a time: what bounds the memory of everything that reads a source."""

SILENCE = 60
"""Seconds without a byte after which a web server is given up."""

SLOWEST = 1024
"""Bytes per second below which a server is given up too: one that sends a byte a second is never silent."""

STORAGE_PACKAGES = ("fsspec", "aiohttp", "s3fs", "botocore", "aiobotocore", "gcsfs", "google", "adlfs", "azure")
"""What fsspec's file systems stand on. Their exceptions share no base class: an error is theirs by its module."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class SourceFile:
    """A file of text, or of records with a text each. Plain values: it travels to other processes.

    Attributes:
        path: on this machine, or an address.
        kind: ``text`` (one document), ``jsonl`` or ``parquet`` (one per record).
        size: bytes as they lie there; 0 if unknown.
        stamp: changes when the file does.
    """

    path: str
    kind: str
    size: int
    stamp: str

    @property
    def is_remote(self) -> bool:
        return is_remote(self.path)

    @property
    def is_compressed(self) -> bool:
        return _name(self.path).suffix in CODECS

    def identity(self) -> list[Any]:
        """What changes when its content may have, in plain types."""
        path = self.path if self.is_remote else str(Path(self.path).absolute())
        return [path, self.kind, self.size, self.stamp]

    def require_unchanged(self) -> None:
        """Raise UserError if a file of this machine was written to since it was found.

        A remote file's version was fixed when it was listed.
        """
        if self.is_remote:
            return
        try:
            stat = Path(self.path).stat()
        except OSError as error:
            raise UserError(f"{self.path}: it changed while it was read ({reason(error)}): run again") from None
        if f"{stat.st_size} {stat.st_mtime_ns}" != self.stamp:
            raise UserError(f"{self.path}: it changed while it was read: run again")


# -- names ---------------------------------------------------------------------------------------------------------


def is_remote(corpus: str) -> bool:
    """Whether a corpus is an address that fsspec reads, and not a path on this machine."""
    scheme = _SCHEME.match(corpus)
    return scheme is not None and scheme[1].lower() not in ("file", "hf")


def kind_of(path: str) -> str:
    """What a file of this name holds. One without a known ending is plain text."""
    inner = _inner(path)
    if inner in NOT_READ:
        advice = "write one JSON object per line into a .jsonl file" if inner == ".json" else "give what is in it"
        raise UserError(f"{path}: {inner} files are neither text nor records; {advice}")
    return RECORDS.get(inner, "text")


def is_corpus_file(path: str) -> bool:
    """Whether a file of this name in a folder belongs to a corpus."""
    inner = _inner(path)
    return inner in TEXTS or inner in RECORDS


def _name(path: str) -> PurePosixPath:
    # Lower case: A.JSONL holds records too. On the web a question mark begins a query; in a file name it does not.
    return PurePosixPath((path.partition("?")[0] if "://" in path else path).lower())


def _inner(path: str) -> str:
    name = _name(path)
    return name.with_suffix("").suffix if name.suffix in CODECS else name.suffix


# -- this machine --------------------------------------------------------------------------------------------------


def local_file(path: Path) -> SourceFile:
    """A file of this machine; UserError if it cannot be read, or holds something else than its name says."""
    kind = kind_of(path.name)
    with open_user_file(path, what="corpus") as file, named_errors(str(path)):
        # None is what a file of /proc answers that has nothing to say yet.
        beginning = (file.read(16) or b"") if _name(path.name).suffix not in CODECS else b""
        stat = os.fstat(file.fileno())
    found = next((ending for magic, ending in MAGIC.items() if beginning.startswith(magic)), None)
    if found and (found, kind) != (".parquet", "parquet"):
        advice = "name it so" if found in (*CODECS, ".parquet") else "give the text that is in it"
        raise UserError(f"{path}: by its content it is a {found} file: {advice}")
    return SourceFile(str(path), kind, stat.st_size, f"{stat.st_size} {stat.st_mtime_ns}")


def local_paths(corpus: str) -> list[Path]:
    """The files of a path, a folder or a pattern, sorted; UserError if there are none."""
    path = user_path(corpus, what="corpus")
    if path.is_dir():
        named = [file for file in path.rglob("*") if is_corpus_file(file.name) and is_file(file)]
        found = sorted(file for file in named if not is_hidden(file.relative_to(path).as_posix()))
        warn_of_hidden(corpus, len(named) - len(found))
        if not found:
            raise UserError(
                f"corpus {corpus}: the folder holds no {' or '.join('*' + end for end in TEXTS)} file, and no "
                f"{' or '.join(RECORDS)} one (each may end in {' or '.join(CODECS)} too)"
            )
        return found
    if not path.exists() and glob.has_magic(corpus):
        # Path.glob would refuse a pattern that begins at the root.
        matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
        found = sorted(file for file in matches if is_file(file))
        if not found:
            raise UserError(f"corpus {corpus}: the pattern matches no file")
        return found
    if not path.exists():
        raise UserError(f"corpus {corpus}: no such file or folder; the corpora by name are {', '.join(BUILTIN)}")
    return [path]


def is_file(path: Path) -> bool:
    """Whether a file is there; UserError if that may not be known, as in a folder that may only be listed."""
    return user_path(path, what="corpus").is_file()


def is_hidden(path: str) -> bool:
    """Whether a file in a folder, or a folder on the way to it, is hidden: .git, .ipynb_checkpoints."""
    return any(part.startswith(".") for part in path.split("/"))


@cache  # Once per corpus: a preparation looks at its files more than once.
def warn_of_hidden(corpus: str, count: int) -> None:
    """Log how many files of a folder are left out, being hidden."""
    if count:
        log.warning("corpus %s: %d hidden files, or files in hidden folders, are left out", corpus, count)


# -- bytes ---------------------------------------------------------------------------------------------------------


@contextmanager
def open_source(file: SourceFile) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed.

    Raises:
        UserError: if they are damaged or cut short, or an address fails; also while they are read.
    """
    import fsspec

    if not file.size and not file.is_remote:
        yield io.BytesIO()  # Not opened: the files of /proc have no size either, and reading some of them never ends.
        return
    with named_errors(file.path):
        compression = CODECS.get(_name(file.path).suffix)
        if compression == "zstd" and "zstd" not in fsspec.available_compressions():
            raise UserError(f"{file.path}: .zst needs the extra corpora: pip install 'tinytf[corpora]'")
        raw = open_raw(file.path, **open_options(file.path))
        # Decompressed here and not by fsspec, so that the pace of the server is seen below the codec.
        stream = _NamedReader(raw, file.path)
        data = fsspec.compression.compr[compression](stream, mode="rb") if compression else stream
    with raw, io.BufferedReader(_NamedReader(data, file.path) if compression else stream, BLOCK) as source:
        yield cast(BinaryIO, source)


def open_raw(path: str, **options: Any) -> Any:
    """A file of an address, or of this machine, as it lies there."""
    import fsspec

    # Not by fsspec on this machine: it takes a path like a::b.txt for a chain of file systems.
    return fsspec.open(path, "rb", **options).open() if is_remote(path) else Path(path).open("rb")


def open_options(address: str) -> dict[str, Any]:
    """How fsspec is to open an address."""
    if not address.startswith(("http://", "https://")):
        return {}
    import aiohttp

    # No total timeout: a large shard takes as long as it takes. block_size=0 reads a file as one stream, for a plain
    # web server may not know how to send a part of it.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
    return {"block_size": 0, "client_kwargs": {"timeout": timeout}}


class _NamedReader(io.RawIOBase):
    """A file whose failures name it, among them that its server is too slow to wait for."""

    def __init__(self, raw: Any, name: str) -> None:
        self._raw, self._name = raw, name
        self._pace = Pace(name) if is_remote(name) else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._raw.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        with named_errors(self._name):
            return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())

    def readinto(self, buffer: Any) -> int:
        with named_errors(self._name):
            data = self._pace.read(self._raw, len(buffer)) if self._pace else self._raw.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Pace:
    """Gives a server up whose reads brought less than `SLOWEST` over `SILENCE` seconds."""

    def __init__(self, name: str) -> None:
        self._name, self._seconds, self._bytes = name, 0.0, 0

    def read(self, source: Any, n_bytes: int) -> bytes:
        """Read from the server's file; UserError if it has been too slow."""
        start = time.monotonic()
        data: bytes = source.read(n_bytes)
        # Time between two reads is ours, not the server's.
        self._seconds += time.monotonic() - start
        self._bytes += len(data)
        if self._seconds >= SILENCE:
            if data and self._bytes < SLOWEST * self._seconds:
                raise UserError(
                    f"{self._name}: it could not be fetched (only {self._bytes:,} bytes in {self._seconds:.0f} s); "
                    "what is done is kept, run again"
                )
            self._seconds, self._bytes = 0.0, 0
        return data


@contextmanager
def named_errors(path: str) -> Iterator[None]:
    """One line for what goes wrong with a source: damage, or an address that fails. Our own bugs pass through."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{path}: {' '.join(str(error).split())}; the extra remote brings what s3:// and gs:// need: "
            "pip install 'tinytf[remote]'"
        ) from error
    except Exception as error:
        damaged = isinstance(error, (EOFError, zlib.error)) or type(error).__name__ in (
            "BadGzipFile", "ZstdError", "LZMAError",
        )  # fmt: skip
        if not (damaged or isinstance(error, OSError) or raised_by(error, STORAGE_PACKAGES)):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        # The codecs raise OSErrors without a number; the system's own all have one.
        if damaged or (isinstance(error, OSError) and error.errno is None and not is_remote(path)):
            raise UserError(f"{path}: it is damaged or cut short ({why})") from error
        if not is_remote(path):
            raise UserError(f"{path}: it cannot be read ({getattr(error, 'strerror', None) or why})") from error
        # fsspec says that a file is not found when a web server cannot be reached, too.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        if cause is None or getattr(cause, "status", None) == 404:
            raise UserError(f"{path}: there is no such file") from None
        why = " ".join(str(cause).split()) or type(cause).__name__
        raise UserError(f"{path}: it could not be fetched ({why}); what is done is kept, run again") from error


def raised_by(error: Exception, packages: tuple[str, ...]) -> bool:
    """Whether the class of an exception is one of these packages' own."""
    return any(base.__module__.partition(".")[0] in packages for base in type(error).__mro__)


def skip(file: BinaryIO, count: int) -> None:
    """Go on to an offset, by reading if the file cannot seek."""
    if file.seekable():
        file.seek(count)
        return
    while count and (read := len(file.read(min(BLOCK, count)))):
        count -= read


def byte_progress(label: str, total: int) -> Any:
    """tqdm over bytes on stderr, shown once the work has lasted a second; a line per half minute without a terminal."""
    from tqdm import tqdm

    # Its own lock is a semaphore of multiprocessing: from Python 3.14 on, a killed process would leave it, and a line
    # of Python's resource tracker about it. Bars of several processes are none of ours.
    tqdm.set_lock(threading.RLock())
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(
        desc=public(label), total=total or None, unit="B", unit_scale=True, delay=1, mininterval=interval, leave=False
    )
