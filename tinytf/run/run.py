"""The door to a run on disk: what `tinytf fit` adds to a Trainer. README.md beside it lists the invariants."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger

from tinytf.errors import RunError, UserError
from tinytf.run.callbacks import RunCallback
from tinytf.run.callbacks.averaging import AveragedWeights, averaged_by
from tinytf.run.callbacks.checkpoints import BestCheckpoints, PeriodicCheckpoint
from tinytf.run.callbacks.exact_resume import ExactResume
from tinytf.run.callbacks.journal import JournalCallback
from tinytf.run.callbacks.loss import LossMonitor, SaveNonFinite
from tinytf.run.callbacks.metadata import CheckpointMetadata
from tinytf.run.callbacks.norms import LayerwiseNorms
from tinytf.run.callbacks.profiler import Profiler
from tinytf.run.callbacks.progress import progress_bar
from tinytf.run.callbacks.samples import Samples
from tinytf.run.callbacks.signals import GracefulStop
from tinytf.run.callbacks.throughput import Throughput
from tinytf.run.callbacks.validation import Validation
from tinytf.run.config import CheckpointConfig
from tinytf.run.directory import create_run_dir, last_intact, newest_step, saved_checkpoints
from tinytf.run.journal import FILE_NAME, Journal, run_id_of
from tinytf.run.loggers import build_loggers
from tinytf.run.provenance import collect, write_uncommitted_patch
from tinytf.run.recovery import acquire_run_lock, recover_run_dir, release_run_locks
from tinytf.utils.files import atomic_write
from tinytf.utils.text import public, yaml_text
from tinytf.weights.checkpoint import read_checkpoint, refuse_misfit, write_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resume:
    """The checkpoint that a command starts from.

    Args:
        path: the file.
        step: optimizer steps it has done.
        entry: its ``tinytf`` entry.
        newest: whether its folder held no later one when it was read.
        stopped: whether a callback had ended the run at this step.
        own: whether it is of a run below checkpoint.dir: a stranger's is resumed in a new run, never in its folder.
    """

    path: Path
    step: int
    entry: dict[str, Any]
    newest: bool
    stopped: bool = False
    own: bool = True

    @classmethod
    def read(cls, path: Path) -> Resume:
        """Read a checkpoint's entry, not its weights; UserError as `read_checkpoint` and `refuse_misfit`."""
        content = read_checkpoint(path, mmap=True)
        refuse_misfit(content, path)
        step = int(content["global_step"])
        newest = newest_step(path.resolve().parent) <= step
        return cls(path, step, content["tinytf"], newest, content.get("should_stop") is True)


class OptionalCallbacks(NamedTuple):
    """Callbacks whose constructors declare the rest of the section ``tracking``; each can be turned off there."""

    profile: Profiler
    norms: LayerwiseNorms
    loss: LossMonitor
    samples: Samples


@dataclass(frozen=True)
class Run:
    """An open run: its directory is locked, recovered from a kill, and holds its config.

    Args:
        directory: where the run is written. In other processes than the first it is unknown until training starts.
        config: the resolved config, in plain types.
        data: the data's fingerprint.
        resume: the checkpoint that the run resumes from; None for a new run.
        base: the identity of the pretrained model that the run began from; None if it began from noise.
    """

    directory: Path
    config: dict[str, Any]
    data: dict[str, Any]
    resume: Resume | None
    base: dict[str, Any] | None = None

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        config: dict[str, Any],
        data: dict[str, Any],
        resume: Resume | None = None,
        base: dict[str, Any] | None = None,
    ) -> Iterator[Run]:
        """Open a new run, or the one that a checkpoint belongs to; nobody else trains in it until the block ends.

        What the run stores of config and data is `public`: no credential of an address is in config.yaml, journal,
        checkpoints or trackers. If the block ends in an error before the first step, a new run's directory is removed
        again: ``last`` would take it for the newest run.

        Raises:
            UserError: if another process trains in the directory, it cannot be written, or the data have changed.
        """
        config, data = public(config), public(data)
        if not is_first_process():
            yield cls(Path(), config, data, resume, base)
            return
        if resume:
            refuse_other_text(data, resume.entry["data"], resume.path)
        root, name = Path(config["checkpoint"]["dir"]), config["name"]
        # Path's exists raises for a name that is too long.
        around = [folder for folder in (root / name, root) if not os.path.exists(folder)]  # noqa: PTH110
        directory, is_new = choose_directory(root, name, resume)
        try:
            if resume and not is_new:
                finished = resume.stopped or resume.step >= config["trainer"]["max_steps"]
                recover_run_dir(directory, resume.path, finished)
            write_config(directory, config, resume)
            yield cls(directory, config, data, resume, base)
        except Exception:
            if is_new and not has_trained(directory):
                release_run_locks()  # Windows removes no open file.
                discard(directory, around)
            raise
        finally:
            release_run_locks()

    def callbacks(
        self, tracking: Namespace, checkpoint: CheckpointConfig, given: Sequence[Callback] = ()
    ) -> list[Callback]:
        """What makes a run durable, resumable and tracked, in the order in which it must happen at a step's end.

        Args:
            tracking: the fields of `TrackingConfig` and `OptionalCallbacks`.
            checkpoint: when to save, and what to keep.
            given: the user's own, which come first: what they log at a step is in its row.
        """
        provenance = collect(hostname=tracking.hostname)
        if tracking.git_diff and is_first_process():
            suffix = f"-{self.resume.step:07d}" if self.resume else ""
            write_uncommitted_patch(self.directory / f"uncommitted{suffix}.patch", Path.cwd())
        start = {"run_id": self.run_id, "provenance": provenance, "data": self.data, "config": self.config}
        start |= {"base": self.base} if self.base else {}
        start |= averaged_by(given)
        periodic = PeriodicCheckpoint(checkpoint.every_n_steps, checkpoint.keep_last)
        return [
            *given,
            BroadcastRunDir(self.directory),
            # Before the journal, which writes down where the batch is.
            SaveNonFinite(),
            tracking.profile,
            Throughput(),
            tracking.norms,
            tracking.loss,
            JournalCallback(start),
            Validation(),
            tracking.samples,
            *progress_bar(self.config["trainer"]["enable_progress_bar"], given),
            AveragedWeights(),
            ExactResume(),
            CheckpointMetadata(self.config, provenance),
            GracefulStop(periodic),
            # Lightning moves those that save to the end, in this order.
            BestCheckpoints(checkpoint.save_top_k),
            periodic,
        ]

    def loggers(self, tracking: Namespace, others: Iterable[Logger] = ()) -> list[Logger]:
        """The trackers that the config asks for, the first process's alone, and loggers of the user's.

        In the first process none of them can stop or slow the run: see `tinytf.run.loggers.follower`.
        """
        asked = {key: tracking[key] for key in ("tensorboard", "wandb", "mlflow")}
        if not is_first_process():
            # Lightning's callbacks that log refuse a Trainer without loggers, in each process.
            return [*(DummyLogger() for each in asked.values() if each), *others]
        step = self.resume.step if self.resume else None
        return [*build_loggers(self.directory, self.run_id, step, **asked, others=others)]

    def checkpoint_io(self, callbacks: list[Callback]) -> DurableCheckpointIO:
        """How checkpoints are written and read."""
        journal = next(callback for callback in callbacks if isinstance(callback, JournalCallback))
        return DurableCheckpointIO(journal.checkpoint_saved)

    @cached_property
    def run_id(self) -> str:
        """The id of the run in remote trackers, the same after a resume; empty in other processes than the first."""
        return run_id_of(self.directory) if is_first_process() else ""


def is_first_process() -> bool:
    """Whether this is rank 0; from the environment, before any process group exists."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def choose_directory(root: Path, name: str, resume: Resume | None) -> tuple[Path, bool]:
    """The locked directory of a new run (and True), or of the one that is resumed (and False).

    A run is resumed in place only from its newest checkpoint, wherever its folder has moved to. From an older one, or
    one copied out of its folder, it branches into a folder of its own, because resuming in place would overwrite what
    came after; so it does if another name or root is asked for.

    Raises:
        UserError: if another process trains in the folder, or did a moment ago.
    """
    if resume:
        folder = resume.path.resolve().parent
        is_run = resume.own and (folder / "config.yaml").is_file() and (folder / FILE_NAME).is_file()
        if is_run and not asks_elsewhere(root, name, folder, resume.entry["config"]):
            if resume.newest:
                acquire_run_lock(folder)
            # Read again under the lock: the process that held it may have saved since.
            newest = last_intact(folder)
            if newest and Resume.read(newest).step <= resume.step:
                acquire_run_lock(folder)
                return folder, False
            if resume.newest and newest:
                raise UserError(
                    f"run {folder}: another process has trained it further just now; give the command again"
                )
    folder = create_run_dir(root, name)
    acquire_run_lock(folder)
    return folder, True


def asks_elsewhere(root: Path, name: str, folder: Path, saved_config: dict[str, Any]) -> bool:
    """Whether a name or root is given now that is neither the one the run began with nor the one its folder has."""
    other_name = name not in (saved_config["name"], folder.parent.name)
    other_root = str(root) != saved_config["checkpoint"]["dir"] and root.resolve() not in folder.parents
    return other_name or other_root


def has_trained(directory: Path) -> bool:
    """Whether a run has something to keep: a step, a checkpoint, or the batch that it stopped at."""
    steps = {record["step"] for record in Journal(directory / FILE_NAME).records()}
    return len(steps) > 1 or bool(saved_checkpoints(directory)) or any(directory.glob("nonfinite-*"))


def discard(directory: Path, around: list[Path]) -> None:
    """Remove the directory of a run that wrong input kept from its first checkpoint, and the folders made for it."""
    shutil.rmtree(directory)
    for parent in around:
        with contextlib.suppress(OSError):  # It holds another run by now.
            parent.rmdir()


def write_config(folder: Path, config: dict[str, Any], resume: Resume | None) -> None:
    """config.yaml, once; settings that a resumed run changes go into a file of their own beside it."""
    path = folder / "config.yaml"
    # `config` and the checkpoint's are both `public`, so that an address given again is no change.
    if resume and path.exists():
        if config == resume.entry["config"]:
            return
        path = folder / f"config_from_step_{resume.step:07d}.yaml"
    with atomic_write(path) as file:
        file.write(yaml_text(config).encode())


def refuse_other_text(now: Mapping[str, Any], saved: Mapping[str, Any], ckpt: Path) -> None:
    """Refuse to resume with a text that is not the one the run began with, even if its name is."""
    if now["sha256"] != saved["sha256"]:
        raise UserError(
            f"data.corpus {now['corpus']}: its text is not the one that {ckpt} was trained on "
            f"(sha256 {now['sha256'][:12]}, then {saved['sha256'][:12]}); restore that text, or start a new run"
        )
    if now["split"] != saved["split"]:
        raise UserError(
            f"data.corpus {now['corpus']}: its validation or test part is not the one that {ckpt} was measured on; "
            "restore that, or start a new run"
        )


class BroadcastRunDir(RunCallback):
    """Gives every process the directory that the first one chose, and checks that all resume one checkpoint."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        chosen = trainer.strategy.broadcast(trainer.ckpt_path)
        if chosen != trainer.ckpt_path:
            raise RunError(
                f"process {trainer.global_rank} found the checkpoint {trainer.ckpt_path} to resume from, and the first "
                f"one {chosen}: give --ckpt_path the path of one"
            )
        run_dir = trainer.strategy.broadcast(self.run_dir)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunCallback):
                callback.run_dir = run_dir


# Not in checkpoint.py: generate and export read checkpoints, and Lightning takes 6 s to import, torch 2.5.
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
        path.parent.mkdir(parents=True, exist_ok=True)  # The dirpath of a ModelCheckpoint that the user added.
        write_checkpoint(path, checkpoint)
        if self.on_saved:
            self.on_saved(path, checkpoint["global_step"], time.monotonic() - start)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verified, and never unpickled, whatever ``weights_only`` or the environment ask for."""
        return read_checkpoint(path)
