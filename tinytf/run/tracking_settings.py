"""What the ``tracking`` section of a config may say; every key is read by a file of this room."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class WandbSettings:
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
class MlflowSettings:
    """MLflow.

    Args:
        experiment: the experiment that the run is filed under.
        uri: the tracking server; null means MLFLOW_TRACKING_URI, else a store of files beside the runs.
    """

    experiment: str = "tinytf"
    uri: str | None = None


@dataclass
class SampleSettings:
    """Text that the model writes while it trains.

    Args:
        every_n_validations: write samples after each Nth validation; 0 never does.
        prompts: what each sample goes on from; none means the beginning of the validation text.
        max_new_tokens: length of a sample, in tokens.
        temperature: of the sampling; 0 takes the likeliest token.
    """

    every_n_validations: int = 5
    prompts: list[str] = field(default_factory=list)
    max_new_tokens: int = 100
    temperature: float = 0.8


@dataclass
class ProfileSettings:
    """A PyTorch trace of a few steps.

    Args:
        start_step: the first step in the trace, counted from where the process starts; later than what warms up.
        steps: optimizer steps in the trace; a validation that falls between them is in it too.
    """

    start_step: int = 12
    steps: int = 3


@dataclass
class TrackingSettings:
    """What is written down about a run, beside metrics.jsonl, which always is.

    Args:
        tensorboard: write TensorBoard events into the run's folder.
        wandb: log to Weights & Biases; null does not.
        mlflow: log to MLflow; null does not.
        samples: text that the model writes while it trains.
        layer_norms_every_n_steps: log each layer's weight, gradient and update norm every so many steps; 0 never does.
        loss_smoothing: share of the old value in train/loss_smooth at each logging step, in [0, 1); 0 logs none.
        loss_spike_factor: warn where train/loss passes this many times its running median; 0 never does.
        profile: trace a few steps with PyTorch's profiler; null does not.
        hostname: write the machine's name into the provenance.
    """

    tensorboard: bool = True
    wandb: WandbSettings | None = None
    mlflow: MlflowSettings | None = None
    samples: SampleSettings = field(default_factory=SampleSettings)
    layer_norms_every_n_steps: int = 0
    loss_smoothing: float = 0.9
    loss_spike_factor: float = 2.0
    profile: ProfileSettings | None = None
    hostname: bool = False
