"""Writing files so that a crash at any instant leaves the old one or the new one, whole."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
