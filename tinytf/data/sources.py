"""1. Sources: the files that a corpus names, on this machine or behind an address, read decompressed.

fsspec moves and decompresses the bytes of every file; what they hold is documents.py's to say.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urldefrag, urlparse

from tinytf.data.config import cache_write
from tinytf.data.shakespeare import CLEANED_SHA256
from tinytf.errors import UserError
from tinytf.utils.files import sha256_of

NAMES = (*CLEANED_SHA256, "python-docs")
"""Corpora that come with a package."""

TEXTS = (".txt", ".md")
RECORDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
NOT_READ = (".zip", ".tar", ".tgz", ".7z", ".rar", ".json", ".pdf", ".docx", ".gguf", ".safetensors", ".npy")
"""Endings of files that are neither text nor records: read as text, a model would learn their bytes."""

BLOCK = 1 << 20
"""Bytes read at a time: what bounds the memory of everything that reads a source."""

VERSIONS = ("ETag", "etag", "Content-MD5", "md5Hash", "crc32c", "checksum", "Last-Modified", "LastModified",
            "last_modified", "updated", "mtime", "created")  # fmt: skip
"""What file systems call the thing that changes when a file does. (fsspec's own ukey of a web file is its address.)"""

HUB = "hf://"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
LARGEST_RANGE = 100_000


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
        """Whether it lies behind an address."""
        return is_remote(self.path)

    @property
    def is_compressed(self) -> bool:
        """Whether its bytes are to be decompressed."""
        return _name(self.path).suffix in COMPRESSED

    def identity(self) -> list[Any]:
        """What changes when its content may have, in plain types."""
        path = self.path if self.is_remote else str(Path(self.path).absolute())
        return [path, self.kind, self.size, self.stamp]

    def require_unchanged(self) -> None:
        """Raise UserError if a file of this machine was written to since it was found.

        A remote file's version was fixed when it was listed.
        """
        if not self.is_remote and _stamp(Path(self.path)) != self.stamp:
            raise UserError(f"{self.path}: it changed while it was read: run again")


def find_files(corpus: str, cache: Path) -> tuple[SourceFile, ...]:
    """The files of a path, a folder (those with a known ending, at any depth), a pattern or an address, in order.

    Raises:
        UserError: if there are none, or one cannot be read.
    """
    if (urlparse(corpus).scheme in ("http", "https", "file") and "#" in corpus) or corpus.startswith("file://"):
        return (local_file(fetch(corpus, cache)),)
    if is_remote(corpus):
        if corpus.startswith("http") and _kind(corpus) == "text" and not _is_many(corpus):
            # Plain text behind a web address asks for its checksum; shards, which may be thousands, are told apart
            # by the version that the server states.
            return (local_file(fetch(corpus, cache)),)
        return tuple(SourceFile(path, _kind(path), size, stamp) for path, size, stamp in list_remote(corpus))
    return tuple(map(local_file, _local_paths(corpus)))


@contextmanager
def open_source(file: SourceFile) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed.

    Raises:
        UserError: if they are damaged or cut short, or an address fails; also while they are read.
    """
    import fsspec

    with _named_errors(file.path):
        # block_size=0: a web server may not know how to send a part of a file. No total timeout: a large shard takes
        # as long as it takes, but a server that sends nothing for a minute is given up.
        web = {"block_size": 0, "client_kwargs": {"timeout": _web_timeout()}} if file.path.startswith("http") else {}
        path = file.path if file.is_remote else str(Path(file.path).absolute())
        suffix = _name(file.path).suffix
        compression = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}.get(suffix)
        if compression == "zstd" and "zstd" not in fsspec.available_compressions():
            raise UserError(f"{file.path}: .zst needs the extra corpora: pip install 'tinytf[corpora]'")
        opened = fsspec.open(path, "rb", compression=compression, **web)
        raw = opened.open()
    with raw, io.BufferedReader(_NamedReader(raw, file.path), BLOCK) as source:
        yield cast(BinaryIO, source)


class _NamedReader(io.RawIOBase):
    """A file whose failures name it."""

    def __init__(self, raw: Any, name: str) -> None:
        self._raw, self._name = raw, name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._raw.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        with _named_errors(self._name):
            return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())

    def readinto(self, buffer: Any) -> int:
        with _named_errors(self._name):
            data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """One line for what goes wrong with a source: damage, or an address that fails."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{path}: {' '.join(str(error).split())}; the extra remote brings what s3:// and gs:// need: "
            "pip install 'tinytf[remote]'"
        ) from error
    except Exception as error:  # Each file system and each codec has exceptions of its own.
        damaged = isinstance(error, (EOFError, zlib.error)) or type(error).__name__ in (
            "BadGzipFile", "ZstdError", "LZMAError",
        )  # fmt: skip
        why = " ".join(str(error).split()) or type(error).__name__
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


def skip(file: BinaryIO, count: int) -> None:
    """Go on to an offset, by reading if the file cannot seek."""
    if file.seekable():
        file.seek(count)
        return
    while count and (read := len(file.read(min(BLOCK, count)))):
        count -= read


# -- this machine --------------------------------------------------------------------------------------------------


def local_file(path: Path) -> SourceFile:
    """A file of this machine; UserError if it cannot be read."""
    try:
        with path.open("rb"):
            return SourceFile(str(path), _kind(path.name), path.stat().st_size, _stamp(path))
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror})") from error


def _local_paths(corpus: str) -> list[Path]:
    path = Path(corpus).expanduser()
    if path.is_dir():
        found = sorted(
            file
            for file in path.rglob("*")
            if _is_corpus_file(file.name)
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.is_file()
        )
        if not found:
            raise UserError(
                f"corpus {corpus}: the folder holds no {' or '.join('*' + end for end in TEXTS)} file, and no "
                f"{' or '.join(RECORDS)} one (each may end in {' or '.join(COMPRESSED)} too)"
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
        raise UserError(f"corpus {corpus}: no such file or folder; the corpora by name are {', '.join(NAMES)}")
    return [path]


def _name(path: str) -> PurePosixPath:
    """The name that decides what a file holds, in lower case."""
    return PurePosixPath((path.partition("?")[0] if "://" in path else path).lower())


def _kind(path: str) -> str:
    """What a file of this name holds. One without a known ending is plain text."""
    name = _name(path)
    inner = name.with_suffix("") if name.suffix in COMPRESSED else name
    if inner.suffix in NOT_READ:
        advice = (
            "write one JSON object per line into a .jsonl file" if inner.suffix == ".json" else "give what is in it"
        )
        raise UserError(f"{path}: {inner.suffix} files are neither text nor records; {advice}")
    return RECORDS.get(inner.suffix, "text")


def _is_corpus_file(path: str) -> bool:
    """Whether a file of this name in a folder belongs to a corpus."""
    name = _name(path)
    inner = name.with_suffix("").suffix if name.suffix in COMPRESSED else name.suffix
    return inner in TEXTS or inner in RECORDS


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


# -- addresses -----------------------------------------------------------------------------------------------------


def is_remote(corpus: str) -> bool:
    """Whether a corpus is an address that fsspec reads, and not a path on this machine."""
    scheme = _SCHEME.match(corpus)
    return scheme is not None and scheme[1].lower() not in ("file", "hf")


def list_remote(corpus: str) -> list[tuple[str, int, str]]:
    """The address, the size and the version of each file that an address stands for, in order.

    ``{000..127}`` counts, which a plain web server's files need, for it lists none.

    Raises:
        UserError: if it stands for nothing, or the server does not say which version a file is.
    """
    with _named_errors(corpus):
        found = [entry for address in expand_range(corpus) for entry in _entries(address)]
    if not found:
        raise UserError(f"corpus {corpus}: there is nothing there that is text, .jsonl or .parquet")
    return [(address, int(info.get("size") or 0), _version(address, info)) for address, info in found]


def expand_range(address: str) -> list[str]:
    """``a-{08..10}`` as a-08, a-09, a-10."""
    match = _RANGE.search(address)
    if match is None:
        return [address]
    first, last = int(match[1]), int(match[2])
    if last - first >= LARGEST_RANGE:
        raise UserError(f"corpus {address}: {match[0]} stands for more than {LARGEST_RANGE:,} files")
    numbers = (str(number).zfill(len(match[1])) for number in range(first, last + 1))
    rest = [address[: match.start()] + number + address[match.end() :] for number in numbers]
    return [each for one in rest for each in expand_range(one)]


def keep_local(file: SourceFile, cache: Path) -> SourceFile:
    """The same file on this machine: a remote one is copied into the cache, once per version."""
    if not file.is_remote:
        return file
    version = hashlib.sha256(json.dumps(file.identity()).encode()).hexdigest()
    path = cache / "downloads" / version / PurePosixPath(file.path).name
    if not path.is_file():
        _copy(file, path, sha256=None)
    return local_file(path)


def fetch(corpus: str, cache: Path) -> Path:
    """The local copy of ``<url>#sha256=<hex>`` (pip's notation), downloaded only if it is not in the cache.

    Raises:
        UserError: without a checksum, if the address does not answer, or if the sum is another one; then nothing is
            kept.
    """
    url, fragment = urldefrag(corpus)
    expected = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if expected is None:
        raise UserError(
            f"corpus {corpus}: a URL needs the checksum of its content, 64 hexadecimal digits, at its end: "
            f"{url}#sha256=<the first word that sha256sum prints for the file>"
        )
    sha256 = expected[1].lower()
    name = PurePosixPath(unquote(urlparse(url).path)).name or "text"
    path = cache / "downloads" / sha256 / name
    if not (path.is_file() and sha256_of(path) == sha256):
        address = unquote(urlparse(url).path) if url.startswith("file:") else url
        # Kept as it is: a name without an ending is not decompressed while it is copied.
        _copy(SourceFile(address, "text", 0, ""), path, sha256)
    return path


def _copy(file: SourceFile, path: Path, sha256: str | None) -> None:
    import fsspec

    web = {"block_size": 0, "client_kwargs": {"timeout": _web_timeout()}} if file.path.startswith("http") else {}
    sums, size = hashlib.sha256(), 0
    with _named_errors(file.path), fsspec.open(file.path, "rb", **web) as source, cache_write(path) as copy:
        with byte_progress(f"fetching {path.name}", file.size) as progress:
            while block := source.read(BLOCK):
                sums.update(block)
                size += len(block)
                copy.write(block)
                progress.update(len(block))
        # Inside the block: a wrong file must never take its name.
        if sha256 is not None and sums.hexdigest() != sha256:
            raise UserError(
                f"corpus {file.path}: its sha256 is {sums.hexdigest()}, not {sha256} as given: "
                "the file has changed or the download was cut; nothing was kept"
            )
        if file.size and size != file.size:
            raise UserError(f"{file.path}: {size:,} of its {file.size:,} bytes came: run again")


def byte_progress(label: str, total: int) -> Any:
    """tqdm over bytes on stderr, shown once the work has lasted a second; a line per half minute without a terminal."""
    import sys

    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(desc=label, total=total or None, unit="B", unit_scale=True, delay=1, mininterval=interval, leave=False)


def _web_timeout() -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=60)


def _is_many(address: str) -> bool:
    """Whether an address stands for several files. On the web a question mark begins a query."""
    has_pattern = "*" in address or (not address.startswith("http") and glob.has_magic(address))
    return has_pattern or _RANGE.search(address) is not None


def _entries(address: str) -> list[tuple[str, dict[str, Any]]]:
    import fsspec

    system, path = fsspec.core.url_to_fs(address)
    is_web = address.startswith("http")
    if "*" in address or (not is_web and glob.has_magic(address)):
        found = system.glob(path, detail=True)
    elif is_web or system.isfile(path):
        found = {path: system.info(path)}
    else:
        found = {name: info for name, info in system.find(path, detail=True).items() if _is_corpus_file(name)}
    files = {name: info for name, info in found.items() if info.get("type") != "directory"}
    if is_web:  # A page of links tells neither sizes nor versions.
        files = {name: system.info(name) for name in files}
    return [(system.unstrip_protocol(name), files[name]) for name in sorted(files)]


def _version(address: str, info: dict[str, Any]) -> str:
    version = {key: str(info[key]) for key in VERSIONS if info.get(key)}
    if not version:
        raise UserError(
            f"{address}: the server states neither version nor time of it, so that a change could not be seen: "
            f"give {address}#sha256=<checksum>, or copy it here"
        )
    return " ".join(f"{key}={value}" for key, value in sorted(version.items()))
