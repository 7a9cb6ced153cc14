"""Files behind an address (s3://, gs://, https:// and whatever else fsspec knows), read as they come.

fsspec moves bytes and no more: text is tokenised as it streams in, the token ids are the local cache, and batch k stays
a function of (seed, k) over them, whatever reads it. litdata's StreamingDataset brings an order of its own, dealt out
to loader processes and devices; its state names num_workers, and it refuses to go on with another (its
_validate_state_dict).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from tinytf.errors import UserError

HERE = ("file", "hf")
"""Schemes that are not read through fsspec: tinytf.data.download and tinytf.data.hub do."""
VERSIONS = ("ETag", "etag", "Content-MD5", "md5Hash", "crc32c", "checksum", "Last-Modified", "LastModified",
            "last_modified", "updated", "mtime", "created")  # fmt: skip
"""What file systems call the thing that changes when a file does."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_remote(corpus: str) -> bool:
    """Whether a corpus is an address that fsspec reads, and not a path here."""
    scheme = _SCHEME.match(corpus)
    return scheme is not None and scheme[1].lower() not in HERE


def is_pattern(address: str) -> bool:
    """Whether it stands for several files. On the web a question mark begins a query."""
    return "*" in address or (not address.startswith("http") and glob.has_magic(address))


def is_many(address: str) -> bool:
    """Whether an address stands for several files."""
    return is_pattern(address) or _RANGE.search(address) is not None


def listing(corpus: str, wanted: Callable[[str], bool]) -> list[tuple[str, int, str]]:
    """The address, the size and the version of each file that an address stands for, in order.

    ``{000..127}`` counts, which a plain web server's files need, for it lists none.

    Raises:
        UserError: where it stands for nothing, or the server does not say which version a file is.
    """
    with failing_as(corpus):
        found = [entry for address in counted(corpus) for entry in _entries(address, wanted)]
    if not found:
        raise UserError(f"corpus {corpus}: there is nothing there that is text, .jsonl or .parquet")
    return [(address, *_size_and_version(address, info)) for address, info in found]


def counted(address: str) -> list[str]:
    """``a-{08..10}`` as a-08, a-09, a-10."""
    match = _RANGE.search(address)
    if match is None:
        return [address]
    first, last = int(match[1]), int(match[2])
    numbers = (str(number).zfill(len(match[1])) for number in range(first, last + 1))
    return [each for number in numbers for each in counted(address[: match.start()] + number + address[match.end() :])]


@contextmanager
def open_remote(address: str) -> Iterator[BinaryIO]:
    """A remote file's bytes, from the first on."""
    import fsspec

    with failing_as(address):
        system, path = fsspec.core.url_to_fs(address)
        # A web server may not know how to send pieces of a file.
        file = system.open(path, "rb", **({"block_size": 0} if address.startswith("http") else {}))
    with file:
        yield cast(BinaryIO, Failing(file, address))


class Failing:
    """A remote file whose failures name it."""

    def __init__(self, file: Any, address: str) -> None:
        self._file, self._address = file, address

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; a failure names the address."""
        with failing_as(self._address):
            return bytes(self._file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def failing_as(address: str) -> Iterator[None]:
    """One line for what goes wrong with an address."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{address}: {' '.join(str(error).split())}; the extra remote brings what s3, gs and https need: "
            "pip install 'tinytf[remote]'"
        ) from error
    except Exception as error:  # Each file system has exceptions of its own, aiohttp's and botocore's among them.
        # fsspec says that a file is not found where a web server cannot be reached, too.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        if cause is None or getattr(cause, "status", None) == 404:
            raise UserError(f"{address}: there is no such file") from None
        why = " ".join(str(cause).split()) or type(cause).__name__
        raise UserError(f"{address}: it could not be fetched ({why}); what is done is kept, run again") from error


def _entries(address: str, wanted: Callable[[str], bool]) -> list[tuple[str, dict[str, Any]]]:
    import fsspec

    system, path = fsspec.core.url_to_fs(address)
    if is_pattern(address):
        found = system.glob(path, detail=True)
    elif address.startswith("http") or system.isfile(path):
        found = {path: system.info(path)}
    else:
        found = {name: info for name, info in system.find(path, detail=True).items() if wanted(name)}
    files = {name: info for name, info in found.items() if info.get("type") != "directory"}
    if address.startswith("http"):  # A page of links tells neither sizes nor versions.
        files = {name: system.info(name) for name in files}
    return [(system.unstrip_protocol(name), files[name]) for name in sorted(files)]


def _size_and_version(address: str, info: dict[str, Any]) -> tuple[int, str]:
    version = {key: str(info[key]) for key in VERSIONS if info.get(key)}
    if not version:
        raise UserError(
            f"{address}: the server tells neither version nor time of it, so that a change could not be seen: "
            f"give {address}#sha256=<checksum>, or copy it here"
        )
    return int(info.get("size") or 0), " ".join(f"{key}={value}" for key, value in sorted(version.items()))
