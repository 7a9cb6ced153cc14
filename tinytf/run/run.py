"""Putting a run together: its folder, its callbacks in their order, its trackers."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from tinytf.errors import RunError, UserError
from tinytf.run.callbacks.build import build_callbacks
from tinytf.run.callbacks.checkpoint_metadata import SelfContained
from tinytf.run.callbacks.checkpoints import BestCheckpoints, PeriodicCheckpoint
from tinytf.run.callbacks.exact_resume import ExactResume
from tinytf.run.callbacks.journal import MetricsFile
from tinytf.run.callbacks.nonfinite import SaveNonFinite
from tinytf.run.callbacks.progress import StepProgress
from tinytf.run.callbacks.signals import GracefulStop
from tinytf.run.checkpoint import read_checkpoint, refuse_misfit
from tinytf.run.checkpoint_io import DurableCheckpointIO
from tinytf.run.checkpoint_settings import CheckpointSettings
from tinytf.run.directory import claim, last_intact, newest_step, saved
from tinytf.run.journal import FILE_NAME
from tinytf.run.lock import hold
from tinytf.run.loggers.build import build_loggers, run_id_of
from tinytf.run.provenance import collect
from tinytf.run.recovery import mend
from tinytf.run.tracking_settings import TrackingSettings

CLAIMED: dict[Path, list[Path]] = {}
"""Folders that this process made for runs, and those around them that were not there before."""


@dataclass
class Resume:
    """The checkpoint that a command starts from.

    Args:
        path: the file.
        step: optimizer steps it has done.
        entry: its ``tinytf`` entry.
        newest: whether its folder held no later one when it was read.
    """

    path: Path
    step: int
    entry: dict[str, Any]
    newest: bool

    @classmethod
    def read(cls, path: Path) -> Resume:
        """Read a checkpoint's entry, not its weights; UserError as `read_checkpoint` and `refuse_misfit`."""
        content = read_checkpoint(path, mmap=True)
        refuse_misfit(content, path)
        step = int(content["global_step"])
        return cls(path, step, content["tinytf"], newest_step(path.resolve().parent) <= step)


@dataclass
class Run:
    """What `tinytf fit` adds to a Trainer."""

    folder: Path
    callbacks: list[Callback]
    loggers: list[Logger]
    io: DurableCheckpointIO


def run_folder(root: Path, name: str, resume: Resume | None) -> Path:
    """The folder of a new run, or that of the run which goes on.

    A run goes on in place only from its newest checkpoint, wherever its folder has moved to. From an older one, or
    one copied out of its folder, it branches into a folder of its own, because going on in place would overwrite what
    came after; so it does where another name or root is asked for.

    Raises:
        UserError: where another process trains in the folder that the run would go on in, or did a moment ago.
    """
    if resume:
        folder = resume.path.resolve().parent
        is_run = (folder / "config.yaml").is_file() and (folder / FILE_NAME).is_file()
        if is_run and not asks_elsewhere(root, name, folder, resume.entry["config"]):
            if resume.newest:
                hold(folder)
            newest = last_intact(folder)
            if newest and Resume.read(newest).step <= resume.step:
                hold(folder)
                return folder
            if resume.newest and newest:
                raise UserError(
                    f"run {folder}: another process has trained it further just now; give the command again"
                )
    # Path's exists raises for a name that is too long.
    around = [folder for folder in (root / name, root) if not os.path.exists(folder)]  # noqa: PTH110
    folder = claim(root, name)
    CLAIMED[folder] = around
    hold(folder)
    return folder


def asks_elsewhere(root: Path, name: str, folder: Path, saved_config: dict[str, Any]) -> bool:
    """Whether a name or root is given now that is neither the one the run began with nor the one its folder has."""
    other_name = name not in (saved_config["name"], folder.parent.name)
    other_root = str(root) != saved_config["checkpoint"]["dir"] and root.resolve() not in folder.parents
    return other_name or other_root


def discard_claimed() -> None:
    """Remove the folder that this process claimed for a run which wrong input kept from its first checkpoint."""
    while CLAIMED:
        folder, around = CLAIMED.popitem()
        if folder.is_dir() and not saved(folder):
            shutil.rmtree(folder)
            for parent in around:
                with contextlib.suppress(OSError):  # It holds another run by now.
                    parent.rmdir()


def prepare_folder(root: Path, name: str, config: dict[str, Any], resume: Resume | None) -> Path:
    """A folder ready to be written to, with the config in it, and held; UserError where another process holds it."""
    folder = run_folder(root, name, resume)
    if resume and resume.path.resolve().parent == folder.resolve():
        mend(folder, resume.path, resume.step >= config["trainer"]["max_steps"])
    write_config(folder, config, resume)
    return folder


def write_config(folder: Path, config: dict[str, Any], resume: Resume | None) -> None:
    """config.yaml, once; settings that a resumed run changes go into a file of their own beside it."""
    path = folder / "config.yaml"
    if resume and path.exists():
        if config == resume.entry["config"]:
            return
        path = folder / f"config_from_step_{resume.step:07d}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")


def build_run(
    folder: Path,
    config: dict[str, Any],
    data: dict[str, Any],
    checkpoint: CheckpointSettings,
    tracking: TrackingSettings,
    resume: Resume | None,
) -> Run:
    """Callbacks and trackers.

    Args:
        folder: the run's.
        config: the resolved config, plain.
        data: the data's fingerprint.
        checkpoint: what to save.
        tracking: what to write down.
        resume: what the run goes on from.
    """
    provenance = collect(hostname=tracking.hostname)
    run_id = run_id_of(folder)
    metrics = MetricsFile(folder, {"run_id": run_id, "provenance": provenance, "data": data, "config": config})
    best = BestCheckpoints(folder, checkpoint.save_top_k)
    periodic = PeriodicCheckpoint(folder, checkpoint.every_n_steps, checkpoint.keep)
    exact = ExactResume(folder)
    callbacks = [
        SameFolder(best, periodic, exact),
        # Before the journal, which writes down where the batch is.
        SaveNonFinite(periodic),
        *build_callbacks(tracking, metrics, folder, config, provenance),
        *([StepProgress(metrics)] if config["trainer"]["enable_progress_bar"] is not False else []),
        exact,
        SelfContained(config, provenance),
        GracefulStop(periodic),
        # Lightning moves those that save to the end, in this order.
        best,
        periodic,
    ]
    loggers = build_loggers(tracking, folder, run_id, resume.step if resume else None)
    return Run(folder, callbacks, loggers, DurableCheckpointIO(metrics.checkpoint_saved))


class SameFolder(Callback):
    """Gives every process the folder that the first one claimed, and sees that all go on from the same checkpoint."""

    def __init__(self, *holders: BestCheckpoints | PeriodicCheckpoint | ExactResume) -> None:
        self.holders = holders

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        chosen = trainer.strategy.broadcast(trainer.ckpt_path)
        if chosen != trainer.ckpt_path:
            raise RunError(
                f"process {trainer.global_rank} found the checkpoint {trainer.ckpt_path} to go on from, and the first "
                f"one {chosen}: give --ckpt_path the path of one"
            )
        folder = trainer.strategy.broadcast(self.holders[0].folder)
        for holder in self.holders:
            holder.folder = folder
