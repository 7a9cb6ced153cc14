"""Where downloads, tokenizers and token ids are kept, and how a file gets there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tinytf.errors import UserError

ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which the temporary file of a killed process is taken away."""


def cache_root(cache_dir: str | Path | None) -> Path:
    """The cache folder: as given, else ``$TINYTF_CACHE``, else ``$XDG_CACHE_HOME/tinytf``, else ``~/.cache/tinytf``."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if os.environ.get("TINYTF_CACHE"):
        return Path(os.environ["TINYTF_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tinytf"


def digest(what: dict[str, Any]) -> str:
    """A name for plain values: the same ones give the same name, on every machine."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when it is complete and on disk.

    Two processes may write the same name at once: each has its own temporary file, the later rename wins, and whoever
    has the earlier one open keeps it.

    Raises:
        UserError: where the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"the cache cannot be written at {path} ({error.strerror}): "
                "make room, or set --data.cache_dir or TINYTF_CACHE to another folder"
            ) from error
        raise
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    # By age, not by process id: the folder may be shared by machines that do not see each other's processes.
    for leftover in folder.glob(".*.tmp"):
        try:
            if time.time() - leftover.stat().st_mtime > ABANDONED_AFTER:
                leftover.unlink()
        except OSError:  # another process was first, or it is another user's to remove
            continue
