"""Writing checkpoints so that a crash at any instant leaves either the old file or the new one, whole."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from tinytf.errors import RunError
from tinytf.run.checkpoint import read_checkpoint
from tinytf.utils.files import fsync_dir


class DurableCheckpointIO(TorchCheckpointIO):
    """Temporary file in the same folder, fsync, rename, fsync of the folder.

    Lightning's own writer makes its temporary file in $TMPDIR and syncs nothing: across file systems its rename
    is a copy over the old file, and a kill or a full disk in it loses both.

    Args:
        saved: told of each file in place: its path, optimizer step, and the seconds it took.
    """

    def __init__(self, saved: Callable[[Path, int, float], None] | None = None) -> None:
        super().__init__()
        self.saved = saved

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path, start = Path(path), time.monotonic()
        write_durably(path, checkpoint)
        if self.saved:
            self.saved(path, checkpoint["global_step"], time.monotonic() - start)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verified, and never unpickled, whatever ``weights_only`` or the environment ask for."""
        return read_checkpoint(path)


def write_durably(path: Path, content: dict[str, Any]) -> None:
    """torch.save so that afterwards the file is either there whole or as it was before.

    Raises:
        RunError: where the disk is full, or does not take it for a reason of its own.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if reason := _refused(error, path.parent):
            raise RunError(f"{path} cannot be written: {reason}; the run's older files are untouched") from error
        raise
    fsync_dir(path.parent)


def _refused(error: BaseException, folder: Path) -> str | None:
    """Why the disk did not take a file; None for an error of another kind."""
    # torch's zip writer turns the operating system's error into a RuntimeError about a file position.
    of_torch = isinstance(error, RuntimeError) and re.search("PytorchStreamWriter|unexpected pos", str(error))
    if not of_torch and not isinstance(error, OSError):
        return None
    cause = error if isinstance(error, OSError) else error.__context__
    free = os.statvfs(folder)
    left = f"{free.f_bavail * free.f_frsize / 2**20:.0f} MiB free"
    if isinstance(cause, OSError) and cause.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{cause.strerror} ({left})"
    return f"the disk is full ({left})"


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a run's folder."""
    for stale in folder.glob(".*.ckpt.*.tmp"):
        stale.unlink(missing_ok=True)
