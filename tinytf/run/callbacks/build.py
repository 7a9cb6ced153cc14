"""All that is written down about a run, in the order in which it must happen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from tinytf.errors import UserError
from tinytf.run.callbacks.journal import MetricsFile
from tinytf.run.callbacks.norms import LayerNorms
from tinytf.run.callbacks.profiler import Profile
from tinytf.run.callbacks.run_metadata import Dashboards
from tinytf.run.callbacks.samples import Samples
from tinytf.run.callbacks.spikes import LossHealth
from tinytf.run.callbacks.throughput import Throughput
from tinytf.run.tracking_settings import TrackingSettings


def build_callbacks(
    settings: TrackingSettings,
    metrics: MetricsFile,
    run_dir: Path,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> list[Callback]:
    """The callbacks of a training run: those that measure, then the writer of rows, then those that need its rows.

    All of them stand before those that save, so that what belongs to a step is on disk before its checkpoint.

    Args:
        settings: what is wanted.
        metrics: the writer; it is part of the list.
        run_dir: the run's folder.
        config: the resolved config, in plain types.
        provenance: see `tinytf.run.provenance.collect`.

    Raises:
        UserError: where a setting is out of range.
    """
    check(settings)
    callbacks: list[Callback] = []
    if settings.profile is not None:
        callbacks.append(Profile(run_dir, settings.profile))
    callbacks.append(Throughput())
    if settings.layer_norms_every_n_steps:
        callbacks.append(LayerNorms(settings.layer_norms_every_n_steps))
    if settings.loss_smoothing or settings.loss_spike_factor:
        callbacks.append(LossHealth(settings.loss_smoothing, settings.loss_spike_factor))
    callbacks += [metrics, Dashboards(config, provenance)]
    if settings.samples.every_n_validations:
        callbacks.append(Samples(settings.samples, metrics))
    return callbacks


def check(settings: TrackingSettings) -> None:
    """Refuse what has no meaning, by name."""
    least = {
        "samples.every_n_validations": (settings.samples.every_n_validations, 0),
        "samples.max_new_tokens": (settings.samples.max_new_tokens, 1),
        "samples.temperature": (settings.samples.temperature, 0),
        "layer_norms_every_n_steps": (settings.layer_norms_every_n_steps, 0),
        "loss_smoothing": (settings.loss_smoothing, 0),
        "loss_spike_factor": (settings.loss_spike_factor, 0),
    }
    if settings.profile is not None:
        least["profile.start_step"] = (settings.profile.start_step, 1)
        least["profile.steps"] = (settings.profile.steps, 1)
    wrong = [
        f"tracking.{name} is {value}, but must be at least {minimum}"
        for name, (value, minimum) in least.items()
        if value < minimum
    ]
    if settings.loss_smoothing >= 1:
        wrong.append(f"tracking.loss_smoothing is {settings.loss_smoothing}, but must be below 1")
    if 0 < settings.loss_spike_factor <= 1:
        wrong.append(f"tracking.loss_spike_factor is {settings.loss_spike_factor}, but must be above 1, or 0")
    if wrong:
        raise UserError(*wrong)
