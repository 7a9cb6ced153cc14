"""MLflow: Lightning's logger, continuing the same MLflow run after a resume."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from tinytf.errors import UserError
from tinytf.run.config import MlflowConfig
from tinytf.run.journal import Record

RUN_ID = "tinytf.run_id"
"""The tag by which a resumed run finds its MLflow run again."""


class Mlflow(MLFlowLogger):
    """One MLflow run over all attempts of a run.

    MLflow keeps every value it is given. So what an earlier attempt logged is not logged again: a resumed run
    repeats what it did before.

    Args:
        config: experiment and server.
        run_dir: the run directory, ``<name>/version_<N>``, which names it.
        run_id: the same when a run is resumed.

    Raises:
        UserError: if the server cannot be asked.
    """

    def __init__(self, config: MlflowConfig, run_dir: Path, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or str(run_dir.parent.parent / "mlruns")
        if "://" not in uri and uri != "databricks":
            uri = Path(uri).resolve().as_uri()
        if uri.startswith("file:"):
            # MLflow 3 asks for this word before it writes plain files, which alone need no database packages.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self.logged: dict[str, int] = {}
        try:
            super().__init__(
                experiment_name=config.experiment,
                run_name=f"{run_dir.parent.name}/{run_dir.name}",
                tracking_uri=uri,
                tags={RUN_ID: run_id},
            )
            self._run_id = self._find_run(run_id)
        except (MlflowException, ValueError) as error:  # An unknown scheme, a server that does not answer, no address.
            reason = " ".join(str(error).split())
            raise UserError(f"tracking.mlflow.uri {uri}: {reason}; give another, or null for a local folder") from error

    def _find_run(self, run_id: str) -> str | None:
        experiment = self._mlflow_client.get_experiment_by_name(self._experiment_name)
        if experiment is None:
            return None
        query = f"tags.`{RUN_ID}` = '{run_id}'"
        found = self._mlflow_client.search_runs([experiment.experiment_id], query, max_results=1)
        return str(found[0].info.run_id) if found else None

    @rank_zero_only
    def on_resume(self, records: Iterable[Record]) -> None:
        """Learn which steps the server has, so that none is sent twice."""
        client, run = self._mlflow_client, self.run_id
        self.logged = {
            name: max(value.step for value in client.get_metric_history(run, name))
            for name in client.get_run(run).data.metrics
        }

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        super().log_metrics({name: value for name, value in metrics.items() if step > self.logged.get(name, -1)}, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any]) -> None:  # type: ignore[override]
        # MLflow refuses a parameter that changes. One that a resume changed stays as it began, and is a tag too.
        known = self.experiment.get_run(self.run_id).data.params
        super().log_hyperparams({name: value for name, value in params.items() if name not in known})
        for name, value in params.items():
            if name in known and known[name] != str(value)[:250]:
                self.experiment.set_tag(self.run_id, f"changed.{name}", str(value))

    @rank_zero_only
    def log_text(self, name: str, text: str, step: int) -> None:
        """Keep a text as an artifact of its step."""
        self.experiment.log_text(self.run_id, text, f"{name}/step-{step:07d}.md")

    @rank_zero_only
    def log_best(self, path: Path) -> None:
        """Upload a checkpoint as the run's best."""
        self.experiment.log_artifact(self.run_id, str(path), "best")

    def log_export(self, folder: Path) -> None:
        """Upload an export's folder."""
        self.experiment.log_artifacts(self.run_id, str(folder), "export")
