"""What a kill or a damaged disk left in a run's folder, put right before the run goes on there."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from tinytf.run.checkpoint import damage
from tinytf.run.checkpoint_io import sweep
from tinytf.run.directory import SAVED, link_best, link_last, saved
from tinytf.utils.files import fsync_dir

log = logging.getLogger(__name__)


def mend(folder: Path, resumed: Path, finished: bool) -> None:
    """Make the folder one that a run can go on in from one of its checkpoints.

    Temporary files go; damaged checkpoints newer than the resumed one are set aside, or they would be taken for the
    newest again and push intact ones out; links that point at nothing are mended. What was displaced from the best or
    the newest is left to the callbacks that keep those lists.

    Args:
        folder: the run's.
        resumed: the checkpoint, in it, that the run goes on from.
        finished: whether that one is of the run's last step: there is nothing left to train.
    """
    sweep(folder)
    for path in saved(folder):
        if path.name == resumed.resolve().name:
            break
        if damage(path):
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            log.warning("setting %s aside as %s", path, aside.name)
    if finished:
        save_the_end(folder, resumed.resolve())
    link_last(folder)
    link_best(folder)


def save_the_end(folder: Path, resumed: Path) -> None:
    """Make the final checkpoint that a kill just after the last validation, which saved a best one, prevented."""
    match = SAVED.fullmatch(resumed.name)
    final = folder / f"step={match[1]}.ckpt" if match else None
    if final is None or final.exists():
        return
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    shutil.copyfile(resumed, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(final)
    fsync_dir(folder)
