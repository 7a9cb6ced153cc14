"""One small callback per file, and what they share. Those that a run always has say "added automatically"."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, Trainer


class RunCallback(Callback):
    """A callback that can be given the run directory; the open run gives it to all of them in every process."""

    run_dir: Path | None = None


def run_dir_of(trainer: Trainer) -> Path:
    """The directory of the open run, else ``trainer.default_root_dir``."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunCallback) and callback.run_dir is not None:
            return callback.run_dir
    return Path(trainer.default_root_dir)


def steps_remain(trainer: Trainer) -> bool:
    """Whether the Trainer has optimizer steps left; one without ``max_steps`` always has."""
    return trainer.max_steps < 0 or trainer.global_step < trainer.max_steps
