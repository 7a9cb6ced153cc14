"""Writing checkpoints so that a crash at any instant leaves either the old file or the new one, whole."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from tinytf.errors import RunError
from tinytf.run.checkpoint import read_checkpoint
from tinytf.utils.files import atomic_write, is_disk_full


class DurableCheckpointIO(TorchCheckpointIO):
    """Temporary file in the same folder, fsync, rename, fsync of the folder.

    Lightning's own writer makes its temporary file in $TMPDIR and syncs nothing: across file systems its rename is a
    copy over the old file, and a kill or a full disk during that copy loses both.

    Args:
        on_saved: called with each file in place: its path, optimizer step, and the seconds it took.
    """

    def __init__(self, on_saved: Callable[[Path, int, float], None] | None = None) -> None:
        super().__init__()
        self.on_saved = on_saved

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path, start = Path(path), time.monotonic()
        write_checkpoint(path, checkpoint)
        if self.on_saved:
            self.on_saved(path, checkpoint["global_step"], time.monotonic() - start)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verified, and never unpickled, whatever ``weights_only`` or the environment ask for."""
        return read_checkpoint(path)


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """torch.save so that afterwards the file is either there whole or as it was before.

    Raises:
        RunError: if the disk is full or refuses the file.
    """
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns the operating system's error into a RuntimeError about a file position.
        of_torch = isinstance(error, RuntimeError)
        if of_torch and not re.search("PytorchStreamWriter|unexpected pos", str(error)):
            raise
        cause = error.__context__ if of_torch else error
        # Without a cause it is a write that took fewer bytes than it was given, which only a full disk does.
        full = is_disk_full(cause) or not isinstance(cause, OSError)
        reason = "the disk is full" if full else cause.strerror  # type: ignore[union-attr]
        left = f"{shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free"
        raise RunError(f"{path} cannot be written: {reason} ({left}); the run's older files are untouched") from error
