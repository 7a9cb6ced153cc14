"""The `checkpoint` and `tracking` sections of a config."""

from __future__ import annotations

from dataclasses import dataclass, field

from tinytf.errors import require_at_least


@dataclass
class CheckpointConfig:
    """What is saved, when, and where.

    Args:
        dir: folder of all runs; each goes to <dir>/<name>/version_<N>.
        save_top_k: checkpoints to keep by lowest val/loss; 0 keeps none.
        every_n_steps: optimizer steps between two periodic checkpoints; 0 saves at the end only.
        keep_last: periodic checkpoints to keep, the newest; 0 keeps all.
    """

    dir: str = "checkpoints"
    save_top_k: int = 3
    every_n_steps: int = 100
    keep_last: int = 2

    def __post_init__(self) -> None:
        require_at_least(
            "checkpoint",
            save_top_k=(self.save_top_k, 0),
            every_n_steps=(self.every_n_steps, 0),
            keep_last=(self.keep_last, 0),
        )


@dataclass
class WandbConfig:
    """Weights & Biases.

    Args:
        project: the project that the run is filed under.
        entity: user or team; null means the account's default.
        tags: labels of the run.
    """

    project: str = "tinytf"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class MlflowConfig:
    """MLflow.

    Args:
        experiment: the experiment that the run is filed under.
        uri: the tracking server; null means MLFLOW_TRACKING_URI, else a store of files next to the runs.
    """

    experiment: str = "tinytf"
    uri: str | None = None


@dataclass
class TrackingConfig:
    """What is recorded about a run, besides metrics.jsonl, which always is; beside it are `OptionalCallbacks`.

    Args:
        tensorboard: write TensorBoard events into the run directory.
        wandb: log to Weights & Biases; null does not.
        mlflow: log to MLflow; null does not.
        hostname: put the machine's name into the provenance.
        git_diff: write the uncommitted changes into the run directory, as uncommitted.patch.
    """

    tensorboard: bool = True
    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None
    hostname: bool = False
    git_diff: bool = False
