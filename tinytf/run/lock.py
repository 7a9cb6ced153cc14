"""One process a run: two that train in the same folder would write into each other's files."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

from tinytf.errors import UserError

LOCK = ".lock"
HELD: dict[Path, int] = {}
"""Descriptors of lock files: closing one lets go of it."""

log = logging.getLogger(__name__)


def hold(folder: Path) -> None:
    """Keep other processes from training in a run's folder, until `let_go`.

    A record lock, because it ends with the process however that ends, and the workers that it forks do not inherit it.

    Raises:
        UserError: where another process holds it, or it cannot be written to.
    """
    path = folder.resolve() / LOCK
    if path not in HELD:
        try:
            HELD[path] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"run {folder}: its folder cannot be written to ({error.strerror})") from error
    try:
        fcntl.lockf(HELD[path], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(HELD.pop(path))
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"run {folder}: another process is training it; wait for its end, or give --name for a run of its own"
            ) from None
        log.warning("run %s cannot be locked (%s): start no second process in it", folder, error.strerror)


def let_go() -> None:
    """Let other processes have the folders that this one holds."""
    while HELD:
        os.close(HELD.popitem()[1])
