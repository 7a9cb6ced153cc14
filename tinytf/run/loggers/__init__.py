"""Lightning's loggers, resumed without a gap or a duplicate step."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.loggers.logger import Logger

from tinytf.errors import UserError
from tinytf.run.config import MlflowConfig, WandbConfig
from tinytf.run.loggers.follower import Follower
from tinytf.run.loggers.mlflow import Mlflow
from tinytf.run.loggers.tensorboard import TensorBoard
from tinytf.run.loggers.wandb import Wandb

WANDB_TAG = 64
"""Characters of a tag; W&B's server answers a longer one with an error that ends the run."""


def build_loggers(
    run_dir: Path,
    run_id: str,
    resume_step: int | None = None,
    *,
    tensorboard: bool = True,
    wandb: WandbConfig | None = None,
    mlflow: MlflowConfig | None = None,
    others: Iterable[Logger] = (),
) -> list[Follower]:
    """The trackers of a run, for ``Trainer(logger=…)``; for the first process alone, which knows the run directory.

    Args:
        run_dir: the run directory.
        run_id: see `tinytf.run.journal.run_id_of`.
        resume_step: ``global_step`` of the checkpoint that the run resumes from; None for a new run.
        tensorboard: whether to write TensorBoard events.
        wandb: Weights & Biases, if it is used.
        mlflow: MLflow, if it is used.
        others: Lightning loggers of the user's.

    Raises:
        UserError: as `require_trackers`, `Wandb` and `Mlflow`.
    """
    require_trackers(wandb, mlflow)
    loggers: list[Logger] = []
    if tensorboard:
        loggers.append(TensorBoard(run_dir, resume_step))
    if wandb is not None:
        loggers.append(Wandb(wandb, run_dir, run_id))
    if mlflow is not None:
        loggers.append(Mlflow(mlflow, run_dir, run_id))
    return [Follower(logger, run_dir) for logger in (*loggers, *others)]


def require_trackers(wandb: WandbConfig | None, mlflow: MlflowConfig | None) -> None:
    """Refuse at the start what a tracker would refuse in the middle of its own.

    Raises:
        UserError: naming each tracker whose package is not installed, and each tag that W&B does not take.
    """
    asked = [name for name, config in (("wandb", wandb), ("mlflow", mlflow)) if config is not None]
    wrong = [
        f"tracking.{name}: the package {name} is not installed; pip install 'tinytf[{name}]', "
        f"or set tracking.{name} to null"
        for name in asked
        if importlib.util.find_spec(name) is None
    ]
    wrong += [
        f"tracking.wandb.tags: {tag!r} has {len(tag)} characters, but W&B takes 1 to {WANDB_TAG}"
        for tag in (wandb.tags if wandb else ())
        if not 1 <= len(tag) <= WANDB_TAG
    ]
    if wrong:
        raise UserError(*wrong)
