"""The `checkpoint` and `tracking` sections of a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tinytf.run.callbacks import require_at_least


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
class SamplesConfig:
    """Arguments of `Samples`.

    Args:
        every_n_validations: write samples after each Nth validation; 0 never does.
        prompts: the beginnings to complete; none means the beginning of the validation text.
        max_new_tokens: length of a completion, in tokens.
        temperature: of the sampling; 0 takes the likeliest token.
    """

    every_n_validations: int = 5
    prompts: Sequence[str] = ()
    max_new_tokens: int = 100
    temperature: float = 0.8


@dataclass
class NormsConfig:
    """Arguments of `LayerwiseNorms`.

    Args:
        every_n_steps: log each layer's weight, gradient and update norm every so many steps; 0 never does.
    """

    every_n_steps: int = 0


@dataclass
class LossConfig:
    """Arguments of `LossMonitor`.

    Args:
        smoothing: share of the old value in train/loss_smooth at each logging step, in [0, 1); 0 logs none.
        spike_factor: warn when train/loss passes this many times its running median; 0 never does.
    """

    smoothing: float = 0.9
    spike_factor: float = 2.0


@dataclass
class ProfileConfig:
    """Arguments of `Profiler`.

    Args:
        start_step: the first step in the trace, counted from where the process starts; later than what warms up.
        steps: optimizer steps in the trace, with the validations between them; 0 traces none.
    """

    start_step: int = 12
    steps: int = 0


@dataclass
class TrackingConfig:
    """What is recorded about a run, besides metrics.jsonl, which always is.

    Args:
        tensorboard: write TensorBoard events into the run directory.
        wandb: log to Weights & Biases; null does not.
        mlflow: log to MLflow; null does not.
        samples: text that the model writes while it trains.
        norms: norms of each layer.
        loss: the smoothed loss, and a warning when it spikes.
        profile: a PyTorch trace of a few steps.
        hostname: put the machine's name into the provenance.
        git_diff: write the uncommitted changes into the run directory, as uncommitted.patch.
    """

    tensorboard: bool = True
    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    norms: NormsConfig = field(default_factory=NormsConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    hostname: bool = False
    git_diff: bool = False
