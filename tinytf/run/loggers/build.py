"""The trackers that a config asks for."""

from __future__ import annotations

import importlib.util
import uuid
from pathlib import Path

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from tinytf.errors import UserError
from tinytf.run.journal import FILE_NAME, read
from tinytf.run.loggers.mlflow import Mlflow
from tinytf.run.loggers.tensorboard import TensorBoard
from tinytf.run.loggers.wandb import Wandb
from tinytf.run.tracking_settings import TrackingSettings


def build_loggers(
    settings: TrackingSettings, run_dir: Path, run_id: str, resume_step: int | None = None
) -> list[Logger]:
    """The trackers of a run, for ``Trainer(logger=…)``; several at once are fine. None in other processes.

    Args:
        settings: which.
        run_dir: the run's folder.
        run_id: see `run_id_of`.
        resume_step: ``global_step`` of the checkpoint that the run goes on from; None for a new run.

    Raises:
        UserError: where a tracker's package is missing.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return []  # The first process alone writes, and knows the run's folder before training starts.
    require_packages(settings)
    loggers: list[Logger] = []
    if settings.tensorboard:
        loggers.append(TensorBoard(run_dir, resume_step))
    if settings.wandb is not None:
        loggers.append(Wandb(settings.wandb, run_dir, run_id))
    if settings.mlflow is not None:
        loggers.append(Mlflow(settings.mlflow, run_dir, run_id))
    return loggers


def require_packages(settings: TrackingSettings) -> None:
    """Raise UserError with each tracker whose package is missing."""
    asked = {"wandb": settings.wandb, "mlflow": settings.mlflow}
    absent = [name for name, wanted in asked.items() if wanted is not None and importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            *(
                f"tracking.{name}: the package {name} is not installed; pip install 'tinytf[{name}]', "
                f"or set tracking.{name} to null"
                for name in absent
            )
        )


def run_id_of(run_dir: Path) -> str:
    """The id of a run in trackers elsewhere: the one in its journal, or a new one where it has none yet."""
    path = run_dir / FILE_NAME
    if path.exists():
        for record in read(path):
            if record["event"] == "start" and "run_id" in record:
                return str(record["run_id"])
    return uuid.uuid4().hex[:12]
