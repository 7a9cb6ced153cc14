"""Exclusive lock on a run directory: two processes that train in one would write into each other's files."""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path

from tinytf.errors import UserError

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        # A record lock, not flock: the data workers that this process forks would inherit an flock and outlive it.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


LOCK = ".lock"
DESCRIPTORS: dict[Path, int] = {}
"""Open lock files of this process. Closing one, as the end of the process does, releases its lock."""

log = logging.getLogger(__name__)


def acquire_run_lock(run_dir: Path) -> None:
    """Lock a run directory until `release_run_locks` or the end of the process; no effect if this process has it.

    Raises:
        UserError: if another process holds the lock, or the directory cannot be written to.
    """
    path = run_dir.resolve() / LOCK
    if path not in DESCRIPTORS:
        try:
            DESCRIPTORS[path] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"run {run_dir}: its directory cannot be written to ({error.strerror})") from error
    try:
        _lock(DESCRIPTORS[path])
    except OSError as error:
        os.close(DESCRIPTORS.pop(path))
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise UserError(
                f"run {run_dir}: another process is training it; wait for its end, or give --name for another run"
            ) from None
        log.warning("run %s cannot be locked (%s): start no second process in it", run_dir, error.strerror)


def release_run_locks() -> None:
    """Release every run lock of this process."""
    while DESCRIPTORS:
        os.close(DESCRIPTORS.popitem()[1])
