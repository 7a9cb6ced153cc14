"""1. Sources: the files that an address stands for, and copies of them in the cache."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

from tinytf.data.config import cache_write
from tinytf.data.sources.files import (
    BLOCK,
    Pace,
    SourceFile,
    byte_progress,
    is_corpus_file,
    is_hidden,
    kind_of,
    local_file,
    named_errors,
    open_options,
    warn_of_hidden,
)
from tinytf.errors import UserError
from tinytf.utils.files import open_user_file, sha256_of, user_path
from tinytf.utils.text import HIDDEN, public

SCHEMES = ("http", "https", "s3", "gs", "gcs")
"""Of the addresses that are listed and read. fsspec knows thirty more; of these some read any file of this machine
(local, dir, zip, reference), log in elsewhere (ssh, github), or hold the corpus in the address itself (data)."""

VERSIONS = ("ETag", "etag", "Content-MD5", "md5Hash", "crc32c", "checksum", "Last-Modified", "LastModified",
            "last_modified", "updated", "mtime", "created")  # fmt: skip
"""What file systems call the thing that changes when a file does. (fsspec's own ukey of a web file is its address.)"""

_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
MOST_FILES = 100_000
"""That the ranges of an address may stand for; the largest public corpora have some 50,000 shards."""

LARGEST_UNKNOWN = 64 << 30
"""Bytes after which a download is given up whose server does not say how large it is: it may never end."""


def require_address(address: str) -> None:
    """Refuse what is no address, or one of a file system that is not among `SCHEMES`, before anything is opened.

    Raises:
        UserError: naming the schemes that are read.
    """
    try:
        scheme = urlparse(address).scheme
    except ValueError as error:
        raise UserError(f"corpus {address}: it is no address ({error})") from error
    if "::" in address or not address.startswith(tuple(f"{known}://" for known in ("file", *SCHEMES))):
        found = "file systems that are chained by :: are not read" if "::" in address else f"{scheme}:// is not read"
        known = ", ".join(f"{each}://" for each in ("file", *SCHEMES, "hf"))
        raise UserError(f"corpus {address}: it is no address that can be used: {found}; there are {known}")


def is_one_web_text(corpus: str) -> bool:
    """Whether a corpus is one web file that is known by its checksum, not by the version that a server states.

    Plain text behind a web address asks for its checksum. Of shards, which may be thousands, the server's word holds.
    """
    if not corpus.startswith(("http://", "https://")):
        return False
    return "#" in corpus or (kind_of(corpus) == "text" and not _is_many(corpus))


def list_remote(corpus: str) -> list[tuple[str, int, str]]:
    """The address, the size and the version of each file that an address stands for, in order.

    ``{000..127}`` counts, which a plain web server's files need, for it lists none.

    Raises:
        UserError: if it stands for nothing, or the server does not say which version a file is.
    """
    _require_whole(corpus)
    with named_errors(corpus):
        found = [entry for address in expand_range(corpus) for entry in _entries(address)]
    if not found:
        raise UserError(f"corpus {corpus}: there is nothing there that is text, .jsonl or .parquet")
    for address, _ in found:
        require_address(address)  # A server may name its files as it likes, and fsspec would chain file systems at ::.
    return [(address, int(info.get("size") or 0), _version(address, info)) for address, info in found]


def expand_range(address: str) -> list[str]:
    """``a-{08..10}`` as a-08, a-09, a-10."""
    match = _RANGE.search(address)
    if match is None:
        return [address]
    count = math.prod(max(0, int(last) - int(first) + 1) for first, last in _RANGE.findall(address))
    if count > MOST_FILES:
        raise UserError(f"corpus {address}: its ranges stand for {count:,} files, more than {MOST_FILES:,}")
    first, last = int(match[1]), int(match[2])
    numbers = (str(number).zfill(len(match[1])) for number in range(first, last + 1))
    rest = [address[: match.start()] + number + address[match.end() :] for number in numbers]
    return [each for one in rest for each in expand_range(one)]


def keep_local(file: SourceFile, cache: Path) -> SourceFile:
    """The same file on this machine: a remote one is copied into the cache, once per version."""
    if not file.is_remote:
        return file
    version = hashlib.sha256(json.dumps(file.identity()).encode()).hexdigest()
    # Without the query, which may hold a key.
    path = _cached(cache / "downloads" / version, re.split(r"[?#]", file.path, maxsplit=1)[0])
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
    path = _cached(cache / "downloads" / sha256, unquote(urlparse(url).path))
    if not (path.is_file() and sha256_of(path) == sha256):
        address = unquote(urlparse(url).path) if url.startswith("file:") else url
        # Kept as it is: a name without an ending is not decompressed while it is copied.
        _copy(SourceFile(address, "text", 0, ""), path, sha256)
    return path


def _cached(folder: Path, address: str) -> Path:
    """Where a file of this address is kept; UserError if no file system has such a name."""
    name = PurePosixPath(address).name
    # What ".." names is a folder.
    return user_path(folder / (name if name not in ("", "..") else "text"), what="corpus")


def _require_whole(address: str) -> None:
    """Refuse an address out of a config or checkpoint that was stored without its secrets, before a server does."""
    if HIDDEN in address:
        raise UserError(
            f"corpus {address}: what {HIDDEN} stands for is not stored; give the whole address again "
            "(--data.corpus, --data.val_corpus, --data.test_corpus)"
        )


def _copy(file: SourceFile, path: Path, sha256: str | None) -> None:
    import fsspec

    _require_whole(file.path)
    sums, size, pace, most = hashlib.sha256(), 0, Pace(file.path), file.size or LARGEST_UNKNOWN
    # Not by fsspec on this machine: it takes the name of a file for a chain of file systems, if it has a :: in it.
    opened: Any = (
        fsspec.open(file.path, "rb", **open_options(file.path))
        if file.is_remote
        else open_user_file(file.path, what="corpus")
    )
    with named_errors(file.path), opened as source, cache_write(path) as copy:
        with byte_progress(f"fetching {path.name}", file.size) as progress:
            while block := pace.read(source, BLOCK):
                sums.update(block)
                size += len(block)
                if size > most:
                    raise UserError(f"{file.path}: more than {most:,} bytes came, and no end: give a copy of it")
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


def _is_many(address: str) -> bool:
    """Whether an address stands for several files. On the web a question mark begins a query."""
    has_pattern = "*" in address or (not address.startswith("http") and glob.has_magic(address))
    return has_pattern or _RANGE.search(address) is not None


def _entries(address: str) -> list[tuple[str, dict[str, Any]]]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
    except ValueError as error:  # As s3fs has it for a bucket without a name.
        raise UserError(f"corpus {address}: it is no address that fsspec reads ({error})") from error
    is_web = address.startswith("http")
    if "*" in address or (not is_web and glob.has_magic(address)):
        found = system.glob(path, detail=True)
    elif is_web or system.isfile(path):
        found = {path: system.info(path)}
    else:
        named = {name: info for name, info in system.find(path, detail=True).items() if is_corpus_file(name)}
        found = {name: info for name, info in named.items() if not is_hidden(name[len(path.rstrip("/")) + 1 :])}
        warn_of_hidden(public(address), len(named) - len(found))
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
