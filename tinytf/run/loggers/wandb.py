"""Weights & Biases: Lightning's logger, with the step as W&B's own, so that no step can be there twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from tinytf.errors import UserError
from tinytf.run.config import WandbConfig
from tinytf.run.journal import Record


class Wandb(WandbLogger):
    """One W&B run over all attempts of a run. `WANDB_MODE=offline` writes into the run directory, for `wandb sync`.

    W&B takes rows in the order of their steps and leaves out one that comes again. A resumed run repeats what it
    did before, so what is left out is what is there. One row can be missing: a validation's, if the run was
    killed between the training row of the same step and it.

    Args:
        config: project, entity and tags.
        run_dir: the run directory, ``<name>/version_<N>``, which names it.
        run_id: the id in W&B; the same when a run is resumed.
    """

    def __init__(self, config: WandbConfig, run_dir: Path, run_id: str) -> None:
        import wandb

        super().__init__(
            name=f"{run_dir.parent.name}/{run_dir.name}", save_dir=str(run_dir), id=run_id,
            project=config.project, entity=config.entity, tags=config.tags, group=run_dir.parent.name,
            # W&B would record the command line as it stands, with the passwords of addresses in it; the provenance has
            # it without, and the machine too. The git remote may have a token as its user's name, and what is printed
            # may have anything: a traceback shows the values that it met.
            settings=wandb.Settings(x_disable_meta=True, disable_git=True, console="off"),
        )  # fmt: skip
        # Lightning passes it always, and W&B warns that it means nothing any more.
        self._wandb_init.pop("anonymous", None)

    @property
    def experiment(self) -> Any:
        """The run of W&B, begun at the first call.

        Raises:
            UserError: if W&B knows no account to log to.
        """
        import wandb

        try:
            return super().experiment
        except wandb.errors.UsageError as error:
            raise UserError(
                f"tracking.wandb: {' '.join(str(error).split())}; or set WANDB_MODE=offline, which needs no account"
            ) from error

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log({**metrics, "trainer/global_step": step}, step=step)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        super().log_hyperparams(params)
        self.experiment.define_metric("val/loss", summary="min")

    @rank_zero_only
    def log_text(self, name: str, text: str, step: int) -> None:  # type: ignore[override]
        import wandb

        self.experiment.log({name: wandb.Html(f"<pre>{_escaped(text)}</pre>", inject=False)}, step=step)

    @rank_zero_only
    def log_best(self, path: Path) -> None:
        """Upload a checkpoint as the artifact with the alias ``best``."""
        import wandb

        artifact = wandb.Artifact(f"model-{self.version}", type="model")
        artifact.add_file(str(path), name=path.name)
        self.experiment.log_artifact(artifact, aliases=["best"])

    def log_export(self, folder: Path) -> None:
        """Upload an export's folder as an artifact."""
        import wandb

        artifact = wandb.Artifact(f"export-{self.version}", type="export")
        artifact.add_dir(str(folder))
        self.experiment.log_artifact(artifact)

    def on_resume(self, records: Iterable[Record]) -> None:
        """Nothing: W&B's server knows what it has."""


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
