"""Publishing a bundle: it is made whole in a temporary folder next to its final name, then renamed into place.

Next to a bundle ``export`` there may be, for a while: ``.export.lock`` (one export at a time), ``.export.tmp-<pid>-…``
(a bundle in the making) and ``.export.old`` (the earlier bundle, between two renames). Nothing else outside of the
bundle is touched, and nothing in it that the user put there is removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tinytf.errors import UserError
from tinytf.utils.files import fsync_dir, remove


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Lock ``folder``, finish what a killed export left, and yield an empty folder next to it, removed at the end.

    Raises:
        UserError: if it cannot be made, or another export is writing to ``folder``.
    """
    lock_file = _hidden(folder, "lock")
    if lock_file.is_symlink():
        # In a downloaded run the link may name any file of the user's, and filelock before 3.20 emptied what it opened.
        raise UserError(f"--output_dir {folder}: {lock_file} is a link, which tinytf does not make; remove it")
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock_file.touch()
    except OSError as error:
        raise UserError(f"--output_dir {folder}: it cannot be written to ({error.strerror})") from error
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"--output_dir {folder}: another export is writing to it; wait for it, or give another folder"
        ) from None
    try:
        recover(folder)
        staging = Path(tempfile.mkdtemp(prefix=f"{_hidden(folder, 'tmp').name}-{os.getpid()}-", dir=lock_file.parent))
        try:
            yield staging
        finally:
            remove(staging)
    finally:
        if os.name != "nt":  # Windows removes no open file.
            lock_file.unlink(missing_ok=True)
        lock.release()


def recover(folder: Path) -> None:
    """Undo what a killed export left half done: one whole bundle keeps its name. Call it under the lock."""
    folder, old = folder.resolve(), _hidden(folder, "old")
    if old.is_dir() and not old.is_symlink() and not folder.exists():
        old.rename(folder)  # Killed between the two renames of `publish`.
    remove(old)  # Killed after them.
    for path in folder.parent.iterdir():
        if path.name.startswith(f"{_hidden(folder, 'tmp').name}-"):
            remove(path)


def publish(bundle: Path, folder: Path) -> None:
    """Make ``bundle`` durable and give it the name ``folder``; what has that name makes way.

    A kill at any instant leaves the old bundle or the new one, whole, as ``folder`` or for `recover` to name so.
    """
    for path in bundle.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            fsync_dir(path)
        elif path.is_file() and not path.is_symlink():
            _fsync(path)
    fsync_dir(bundle)
    folder, old = folder.resolve(), _hidden(folder, "old")
    try:
        if folder.exists():
            folder.rename(old)
        bundle.rename(folder)
    except BaseException as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        if isinstance(error, OSError):
            raise UserError(
                f"--output_dir {folder}: it cannot be replaced ({error.strerror}); give a new folder"
            ) from error
        raise
    fsync_dir(folder.parent)
    remove(old)


def link_or_copy(source: Path, target: Path) -> None:
    """The same file, or folder of files, under a second name: by hard links if the file system can make them."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, copy_function=_link_or_copy, symlinks=True, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(str(source), str(target))


def _link_or_copy(source: str, target: str) -> str:
    try:
        # Of a link, the link itself is kept: it may be relative, but the new folder takes the place of the old.
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)
    return target


def _fsync(path: Path) -> None:
    # Windows syncs only what is open for writing.
    with path.open("r+b" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def _hidden(folder: Path, what: str) -> Path:
    # Of a link, what it names: the link stays.
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.{what}")
