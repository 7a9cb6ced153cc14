"""Make a run directory this process's own: lock it, and repair what a kill or a damaged disk left in it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from pathlib import Path

from tinytf.errors import UserError
from tinytf.run.directory import CHECKPOINT, link_best, link_last, saved_checkpoints
from tinytf.utils.files import atomic_write, remove_temporaries
from tinytf.weights.checkpoint import damage

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
    # A second open and close of the file, by this process itself, would release a record lock: so one descriptor each.
    # And one lock each: Windows refuses a second one, even to the process that has the first.
    if path in DESCRIPTORS:
        return
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


def recover_run_dir(run_dir: Path, resumed: Path, finished: bool) -> None:
    """Make a directory one that a run can resume in.

    Temporary files of a killed process go. Damaged checkpoints newer than the resumed one are renamed to
    ``<name>.damaged``: counted as the newest, they would push intact ones out. Links that point at nothing are
    replaced. Checkpoints displaced from the best or the newest are left to the callbacks that keep those lists.

    Args:
        run_dir: the run's, locked by this process.
        resumed: the checkpoint in it that the run resumes from.
        finished: whether that one is of the run's last step, so that no step is left to train.
    """
    resumed = resumed.resolve()
    # Safe only under the lock: they are what a killed process left, never what another is writing.
    remove_temporaries(run_dir)
    for path in saved_checkpoints(run_dir):
        if path.name == resumed.name:
            break
        if damage(path):
            renamed = path.replace(path.with_name(f"{path.name}.damaged"))
            log.warning("renaming the damaged %s to %s", path, renamed.name)
    if finished:
        write_missing_final(run_dir, resumed)
    link_last(run_dir)
    link_best(run_dir)


def write_missing_final(run_dir: Path, resumed: Path) -> None:
    """Write the final periodic checkpoint if a kill came between it and the best one of the same step."""
    match = CHECKPOINT.fullmatch(resumed.name)
    final = run_dir / f"step-{match[1]}.ckpt" if match else None
    if final is not None and not final.exists():
        with atomic_write(final) as file, resumed.open("rb") as source:
            shutil.copyfileobj(source, file)
