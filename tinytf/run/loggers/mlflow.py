"""MLflow: Lightning's logger, continuing the same MLflow run after a resume."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from tinytf.errors import UserError
from tinytf.run.config import MlflowConfig
from tinytf.run.journal import Record
from tinytf.run.loggers.base import Tracker, hyperparameters, row_of, texts_of, unix_time
from tinytf.utils.text import public

T = TypeVar("T")

RUN_ID = "tinytf.run_id"
"""The tag by which a resumed run finds its MLflow run again."""

COMMIT = "mlflow.source.git.commit"
"""MLflow's own tag, which its page of a run shows as the version."""

STATES = {"finished": "FINISHED", "stopped": "KILLED", "error": "FAILED"}
"""What the reason of an ``end`` event is in MLflow."""

METRICS, PARAMS = 1000, 100
"""What MLflow takes in one request."""

VALUE = 250
"""Characters of a parameter that every version of MLflow takes."""


class Mlflow(Tracker, MLFlowLogger):
    """One MLflow run over all attempts of a run.

    MLflow keeps every value it is given, so the server is asked for what it has after each failure and each resume:
    nothing is sent twice. What an earlier attempt logged after the checkpoint stays: the resumed run repeats it.

    Args:
        config: experiment and server.
        run_dir: the run directory, ``<name>/version_<N>``, which names it.
        run_id: the same when a run is resumed.

    Raises:
        UserError: if the address is none. Whether a server answers there is found out later.
    """

    def __init__(self, config: MlflowConfig, run_dir: Path, run_id: str) -> None:
        uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or str(run_dir.parent.parent / "mlruns")
        if "://" not in uri and uri != "databricks":
            uri = Path(uri).resolve().as_uri()
        # MLflow's own: 120 s for a request and 7 more tries. Ours are the Follower's, with the journal as the queue.
        # A server may take its time to store a checkpoint, hence 30 s.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if uri.startswith("file:"):
            # MLflow 3 asks for this word before it writes plain files, which alone need no database packages.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # At a run's end MLflow prints its address to stdout, which is for results, with the password in it.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self.key = f"tracking.mlflow {public(uri)}"
        from mlflow.exceptions import MlflowException

        try:
            super().__init__(
                experiment_name=config.experiment,
                run_name=f"{run_dir.parent.name}/{run_dir.name}",
                tracking_uri=uri,
                tags={RUN_ID: run_id},
            )
        except (MlflowException, ValueError) as error:  # An unknown scheme, no address.
            reason = " ".join(str(error).split())
            raise UserError(f"tracking.mlflow.uri {uri}: {reason}; give another, or null for a local folder") from error
        self._own_id = run_id
        self._logged: dict[str, int] = {}
        self._params: dict[str, str] = {}

    def connect(self) -> None:
        if self._run_id is None:
            self._run_id = self._find_run()
        run = self.experiment.get_run(self.run_id)
        # The newest value of each metric; the public mapping has no steps.
        self._logged = {metric.key: metric.step for metric in run.data._metric_objs}
        self._params = dict(run.data.params)

    def _find_run(self) -> str | None:
        experiment = self._mlflow_client.get_experiment_by_name(self._experiment_name)
        if experiment is None:
            return None
        query = f"tags.`{RUN_ID}` = '{self._own_id}'"
        found = self._mlflow_client.search_runs([experiment.experiment_id], query, max_results=1)
        return str(found[0].info.run_id) if found else None

    def send(self, records: deque[Record]) -> None:
        newest = {record["event"]: record for record in records}
        if "start" in newest:
            self._begin(newest["start"])
        metrics = [metric for record in records if record["event"] == "metrics" for metric in self._lacking(record)]
        for batch in batches(metrics, METRICS):
            self.experiment.log_batch(self.run_id, metrics=batch)
        for record in records:
            if record["event"] == "sample" or record is newest.get("start"):
                for name, text in texts_of(record).items():
                    self.experiment.log_text(self.run_id, text, f"{name}/step-{record['step']:07d}.md")
        if records[-1]["event"] == "end":
            end = int(unix_time(records[-1]) * 1000)
            self.experiment.set_terminated(self.run_id, STATES.get(records[-1].get("reason", "")), end)
        records.clear()

    def _lacking(self, record: Record) -> Iterator[Any]:
        """The metrics of a row that the server has no value of, at this step or later."""
        from mlflow.entities import Metric

        milliseconds = int(unix_time(record) * 1000)
        for name, value in row_of(record).items():
            key = re.sub(r"[^a-zA-Z0-9_/. -]+", "", name)  # As Lightning's own: what MLflow takes.
            if record["step"] > self._logged.get(key, -1):
                yield Metric(key, value, milliseconds, record["step"])

    def _begin(self, start: Record) -> None:
        from mlflow.entities import Param

        # MLflow refuses a parameter that changes. One that a resume changed stays as it began, and is a tag too.
        params = {name: str(value)[:VALUE] for name, value in hyperparameters(start.get("config", {})).items()}
        new = [Param(name, value) for name, value in params.items() if name not in self._params]
        for batch in batches(new, PARAMS):
            self.experiment.log_batch(self.run_id, params=batch)
        tags = {f"changed.{name}": value for name, value in params.items() if self._params.get(name, value) != value}
        commit = start.get("provenance", {}).get("git", {}).get("commit")
        for name, value in {**tags, **({COMMIT: commit} if commit else {})}.items():
            self.experiment.set_tag(self.run_id, name, value)
        self.experiment.update_run(self.run_id, status="RUNNING")

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Nothing: the journal's end says more."""

    def log_best(self, path: Path) -> None:
        if path.name not in {Path(file.path).name for file in self.experiment.list_artifacts(self.run_id, "best")}:
            self.experiment.log_artifact(self.run_id, str(path), "best")

    def log_export(self, folder: Path) -> None:
        self.experiment.log_artifacts(self.run_id, str(folder), "export")


def batches(values: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(values), most):
        yield values[first : first + most]
