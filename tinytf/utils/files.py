"""Files: the user's are read with bounds; ours are written so that a crash leaves the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tinytf.errors import UserError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

# -- the user's ----------------------------------------------------------------------------------------------------


def user_path(given: str | Path, *, what: str) -> Path:
    """The path that a user gave, with ``~`` expanded; it need not exist.

    Args:
        given: from a flag or a config file.
        what: the flag or the key, for messages.

    Raises:
        UserError: if no file system has such a path: an empty one, one with a NUL, one that is too long, the home of
            a user that does not exist; or if this user may not look at what is there.
    """
    if not str(given):
        raise UserError(f"{what} is empty: give a path, or leave it out")
    try:
        path = Path(given).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # Before is_dir and exists, which raise PermissionError up to Python 3.13.
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~nosuch.
        raise UserError(f"{what} {shorten(given)}: {reason(error)}") from None
    return path


def open_user_file(given: str | Path, *, what: str, limit: int | None = None) -> BinaryIO:
    """Open a file of the user's for reading, links followed.

    Args:
        given: its path; ``~`` is expanded.
        what: the flag or the key that names it, for messages.
        limit: bytes that it may have.

    Raises:
        UserError: if it cannot be opened, is larger, or is no regular file. Reading a named pipe may never end, and
            opening a device may do something.
    """
    path = user_path(given, what=what)
    name = f"{what} {shorten(given)}"
    try:
        # A pipe may take the file's place after it was looked at: without O_NONBLOCK, opening one waits for a writer.
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:
            raise UserError(f"{name}: it is {KINDS.get(kind, 'not a file')}; give a regular file")
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except OSError as error:
        raise UserError(f"{name}: {reason(error)}") from None
    size = os.fstat(file.fileno()).st_size
    if limit is not None and size > limit:
        file.close()
        raise UserError(f"{name}: it has {size:,} bytes, more than the {limit:,} that it may have")
    return file


def read_bytes(given: str | Path, *, what: str, limit: int) -> bytes:
    """The content of a user's file of at most ``limit`` bytes; errors as `open_user_file`."""
    with open_user_file(given, what=what, limit=limit) as file:
        try:
            # Files in /proc have a size of 0, whatever is in them, and some answer None.
            content = file.read(limit + 1) or b""
        except OSError as error:
            raise UserError(f"{what} {shorten(given)}: {reason(error)}") from None
    if len(content) > limit:
        raise UserError(f"{what} {shorten(given)}: it has more than the {limit:,} bytes that it may have")
    return content


def read_text(given: str | Path, *, what: str, limit: int) -> str:
    """The content of a user's text file in UTF-8; errors as `open_user_file`, and at bytes that are not UTF-8."""
    try:
        return read_bytes(given, what=what, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {shorten(given)}: byte {error.start} is not UTF-8") from None


def shorten(text: object, longest: int = 200) -> str:
    """A text with its middle left out, if it is too long for a message."""
    text = str(text)
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def reason(error: Exception) -> str:
    """What an OSError, or a ValueError of a path, says is wrong, without the path."""
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())


# -- ours ----------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file in the folder of ``path``; fsync it and rename it to ``path`` when the block ends.

    If the block raises, the temporary file is removed and ``path`` is what it was. Two processes may write one path at
    the same time: each has its own temporary file, and the later rename wins.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed `atomic_write` left in a folder that no other process writes to."""
    for stale in folder.glob(".*.tmp"):
        remove(stale)


def fsync_dir(folder: Path) -> None:
    """Make names that were created or renamed in a folder durable."""
    if os.name == "nt":  # Windows opens no folders, and NTFS journals its names.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error says that a disk, or the user's quota on it, is full."""
    # Windows has no EDQUOT.
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
