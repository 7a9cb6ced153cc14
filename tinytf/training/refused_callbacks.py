"""Callbacks of Lightning that cannot do here what they say, or whose run could not be resumed: what to use instead."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    OnExceptionCheckpoint,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)

from tinytf.errors import UserError

EPOCHS = "and training here is one endless epoch"
REFUSED: dict[type[Callback], str] = {
    BaseFinetuning: f"unfreezes layers by epochs, {EPOCHS}; freeze them in a LanguageModel of your own (from Python)",
    BatchSizeFinder: "changes data.batch_size behind config.yaml; tinytf plan says what fits, and from Python "
    "Tuner.scale_batch_size finds it",
    GradientAccumulationScheduler: "moves the steps away from the micro-batches that validations and resuming are "
    "counted in; use trainer.accumulate_grad_batches",
    LearningRateFinder: "changes the learning rate behind config.yaml, and tries one rate for all groups, where Muon's "
    "matrices need another than the embedding; from Python Tuner.lr_find finds one to give",
    ModelPruning: f"prunes after each epoch, {EPOCHS}; for a smaller model use an int8 or int4 format of tinytf export",
    OnExceptionCheckpoint: "saves in the middle of a step, and a later run would start from its file unasked; "
    "use checkpoint.every_n_steps, and resume with --ckpt_path last",
    SpikeDetection: "writes a state that Lightning cannot read, so that no run with it resumes; use "
    "tracking.loss.spike_factor, which warns, or model.on_nonfinite",
    StochasticWeightAveraging: f"averages once an epoch, {EPOCHS}; use EMAWeightAveraging or WeightAveraging, which "
    "average at each step",
}


def refuse_callbacks(kinds: Iterable[type]) -> None:
    """Raise UserError at the first class of callbacks that cannot be used, with what to use instead."""
    for kind in kinds:
        for refused, why in REFUSED.items():
            if issubclass(kind, refused):
                raise UserError(f"trainer.callbacks: {kind.__name__} {why}")


def refuse_averaging(callbacks: Iterable[Callback]) -> None:
    """Raise UserError at two callbacks that average weights, or one that counts epochs or never averages."""
    averaging = [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
    if len(averaging) > 1:
        names = " and ".join(type(callback).__name__ for callback in averaging)
        raise UserError(f"trainer.callbacks: {names} both make their averages the model; give one")
    for callback in averaging:
        name = f"trainer.callbacks: {type(callback).__name__}"
        if getattr(callback, "update_starting_at_epoch", None) is not None:
            raise UserError(f"{name}.update_starting_at_epoch counts epochs, {EPOCHS}; use update_starting_at_step")
        if (every := getattr(callback, "update_every_n_steps", 1)) < 1:
            raise UserError(f"{name}.update_every_n_steps is {every}, but must be at least 1")


def refuse_equal_keys(callbacks: Iterable[Callback]) -> None:
    """Raise UserError if a checkpoint could not tell the states of two callbacks apart."""
    seen: set[str] = set()
    for callback in callbacks:
        # Only those with a state have a key that must be their own.
        if type(callback).state_dict is not Callback.state_dict and callback.state_key in seen:
            raise UserError(
                f"trainer.callbacks: there are two {type(callback).__name__}, and a checkpoint could not tell their "
                "states apart; give one, or give them other arguments (--trainer.callbacks+= adds to those of the "
                "checkpoint, --trainer.callbacks= replaces them)"
            )
        seen.add(callback.state_key)
