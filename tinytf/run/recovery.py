"""Repair what a kill or a damaged disk left in a run directory, before the run resumes in it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from tinytf.run.checkpoint import damage
from tinytf.run.directory import CHECKPOINT, link_best, link_last, saved_checkpoints
from tinytf.utils.files import atomic_write, remove_temporaries

log = logging.getLogger(__name__)


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
    final = run_dir / f"step={match[1]}.ckpt" if match else None
    if final is not None and not final.exists():
        with atomic_write(final) as file, resumed.open("rb") as source:
            shutil.copyfileobj(source, file)
