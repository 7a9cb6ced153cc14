"""`tinytf sync`: send trackers what they did not get while the run trained, from its journal."""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinytf.cli.config.flags import CommandParser
from tinytf.cli.main import heavy_command
from tinytf.errors import RunError, UserError
from tinytf.run.config import MlflowConfig, WandbConfig
from tinytf.run.directory import is_own
from tinytf.run.journal import FILE_NAME, Record, read
from tinytf.utils.files import user_path
from tinytf.utils.text import HIDDEN, public

if TYPE_CHECKING:
    from tinytf.run.loggers.base import Tracker

UPLOAD = 300.0
"""Seconds that W&B is waited for at the end."""


def run(argv: Sequence[str]) -> int:
    """Send each run to each of its trackers; the exit code."""
    arguments = parser().parse_args(argv)
    with heavy_command():
        failures = [failure for run in arguments.runs for failure in sync(Path(run), arguments)]
    if failures:
        raise RunError("; ".join(failures))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    commands = CommandParser(
        prog="tinytf sync", description="Send runs to their trackers: what these did not get during the training."
    )
    commands.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, <name>/version_<N>")
    commands.add_argument("--root", default="checkpoints", metavar="DIR", help="the folder of all runs")
    commands.add_argument(
        "--mlflow_uri", metavar="ADDRESS", help="MLflow's server; without it the run's own, or MLFLOW_TRACKING_URI"
    )
    return commands


def sync(run_dir: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """Send one run, and yield what went wrong, one line per tracker."""
    from tinytf.run.loggers.follower import best_of, explain
    from tinytf.run.recovery import acquire_run_lock, release_run_locks

    journal = user_path(run_dir, what="run") / FILE_NAME
    if not journal.is_file():
        raise UserError(f"run {run_dir}: it has no {FILE_NAME}; give a run directory, <name>/version_<N>")
    if not is_own(journal, Path(arguments.root)):
        # A journal names servers, and they would be given the keys of this environment.
        raise UserError(f"run {run_dir}: it is not below --root {arguments.root}; give the folder of your runs there")
    acquire_run_lock(run_dir)  # A run that trains sends its rows by itself.
    try:
        records = list(read(journal))
        trackers = trackers_of(run_dir, records, arguments.mlflow_uri)
        if not trackers:
            print(f"{run_dir}: TensorBoard has all rows; there is nothing to send")
        for tracker in trackers:
            try:
                tracker.connect()
                tracker.send(deque(records))
                if best := best_of(records[-1], run_dir):
                    tracker.log_best(best)
                if (run_dir / "export" / "export.json").is_file():
                    tracker.log_export(run_dir / "export")
                tracker.close()
            except Exception as error:
                yield f"run {run_dir}: {tracker.key}: {explain(error)}"
            else:
                rows = sum(record["event"] == "metrics" for record in records)
                print(f"{run_dir}: {tracker.key}: all {rows} rows are there")
    finally:
        release_run_locks()


def trackers_of(run_dir: Path, records: Sequence[Record], mlflow_uri: str | None) -> list[Tracker]:
    """The trackers that a run names in its config, which is the newest start's.

    Raises:
        UserError: if it names none, or one that cannot be reached without what is not stored.
    """
    from tinytf.run.loggers import require_trackers
    from tinytf.run.loggers.mlflow import Mlflow
    from tinytf.run.loggers.tensorboard import TensorBoard, shows
    from tinytf.run.loggers.wandb import Wandb

    start = next((record for record in reversed(records) if record["event"] == "start"), {})
    try:
        run_id, tracking = start["run_id"], start["config"]["tracking"]
        wandb = WandbConfig(**tracking["wandb"]) if tracking["wandb"] else None
        mlflow = MlflowConfig(**tracking["mlflow"]) if tracking["mlflow"] else MlflowConfig() if mlflow_uri else None
    except (KeyError, TypeError):
        raise UserError(
            f"run {run_dir}: its {FILE_NAME} does not say where it was tracked, as a run's start does"
        ) from None
    require_trackers(wandb, mlflow)
    trackers: list[Tracker] = []
    # It is in the run directory: written again if the folder could not be written then.
    if tracking["tensorboard"] and not shows(run_dir, records):
        trackers.append(TensorBoard(run_dir, None))
    if wandb is not None:
        trackers.append(Wandb(wandb, run_dir, run_id, UPLOAD))
    if mlflow is not None:
        mlflow.uri = mlflow_uri or whole_address(mlflow.uri)
        trackers.append(Mlflow(mlflow, run_dir, run_id))
    if not trackers and not tracking["tensorboard"]:
        raise UserError(f"run {run_dir}: its config names no tracker; give --mlflow_uri")
    return trackers


def whole_address(uri: str | None) -> str | None:
    """A run's MLflow address with what was left out when it was stored, from the environment."""
    known = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None or HIDDEN not in uri:
        return uri
    if known and public(known) == uri:
        return known
    raise UserError(
        f"tracking.mlflow.uri {uri}: what {HIDDEN} stands for is not stored; give the whole address with --mlflow_uri "
        "or MLFLOW_TRACKING_URI"
    )
