"""Weights & Biases: Lightning's logger, with the step as W&B's own, so that no step can be there twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from tinytf.errors import UserError
from tinytf.run.config import WandbConfig
from tinytf.run.journal import Record
from tinytf.run.loggers.base import Tracker, hyperparameters, row_of, texts_of, unix_time
from tinytf.run.loggers.follower import END_OF_FILE, END_OF_STOPPED_RUN


class Wandb(Tracker, WandbLogger):
    """One W&B run over all attempts of a run.

    W&B takes rows in the order of their steps, and says from which step on it takes them. One row can be missing: a
    validation's, if the run was killed between the training row of the same step and it. Offline
    (`WANDB_MODE=offline`, for `wandb sync`) it knows of no earlier attempt, and each one writes the whole run so far.

    Args:
        config: project, entity and tags.
        run_dir: the run directory, ``<name>/version_<N>``, which names it.
        run_id: the id in W&B; the same when a run is resumed.
        patience: seconds that the end of the process waits for what is still to be sent.

    Raises:
        UserError: if W&B knows no account to log to.
    """

    key = "tracking.wandb"

    def __init__(self, config: WandbConfig, run_dir: Path, run_id: str, patience: float = END_OF_STOPPED_RUN) -> None:
        import wandb

        super().__init__(
            name=f"{run_dir.parent.name}/{run_dir.name}", save_dir=str(run_dir), id=run_id,
            project=config.project, entity=config.entity, tags=config.tags, group=run_dir.parent.name,
            # W&B would record the command line as it stands, with the passwords of addresses in it; the provenance has
            # it without, and the machine too. The git remote may have a token as its user's name, and what is printed
            # may have anything: a traceback shows the values that it met.
            settings=wandb.Settings(
                x_disable_meta=True, disable_git=True, console="off", init_timeout=30, finish_timeout=patience,
                finish_timeout_raises=True,
            ),
        )  # fmt: skip
        # Lightning passes it always, and W&B warns that it means nothing any more.
        self._wandb_init.pop("anonymous", None)
        self._first_step = 0
        if wandb.setup().settings.mode in ("online", "shared"):
            try:  # Here, where it may ask at a terminal, and before hours of training. It asks no server.
                wandb.login(verify=False)
            except wandb.errors.UsageError as error:
                raise UserError(
                    f"tracking.wandb: {' '.join(str(error).split())}; or set WANDB_MODE=offline, which needs no account"
                ) from error

    def connect(self) -> None:
        self._first_step = self.experiment.step
        self.experiment.define_metric("val/loss", summary="min")

    def send(self, records: deque[Record]) -> None:
        import wandb

        while records:
            record = records[0]
            step = record["step"]
            if record["event"] == "start":
                self.experiment.config.update(hyperparameters(record.get("config", {})), allow_val_change=True)
            shown: dict[str, Any] = {
                name: wandb.Html(f"<pre>{_escaped(text)}</pre>", inject=False)
                for name, text in texts_of(record).items()
            }
            if record["event"] == "metrics":
                shown = {**row_of(record), "trainer/global_step": step}
            if shown and step >= self._first_step:
                self.experiment.log({**shown, "_timestamp": unix_time(record)}, step=step)
            records.popleft()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Metrics of other callbacks, in W&B's newest row: past it, W&B would refuse the rows still to come."""
        self.experiment.log(dict(metrics), step=self.experiment.step)

    def log_best(self, path: Path) -> None:
        """Upload a checkpoint as the artifact with the alias ``best``."""
        import wandb

        artifact = wandb.Artifact(f"model-{self._id}", type="model")
        artifact.add_file(str(path), name=path.name)
        self._upload(artifact, ["best"])

    def log_export(self, folder: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"export-{self._id}", type="export")
        artifact.add_dir(str(folder))
        self._upload(artifact, [])

    def _upload(self, artifact: Any, aliases: list[str]) -> None:
        sent = self.experiment.log_artifact(artifact, aliases=aliases)
        if not self.experiment.offline:
            sent.wait(timeout=int(END_OF_FILE))

    def close(self) -> None:
        self.experiment.finish()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
