"""Averaged weights: under Lightning's WeightAveraging and EMAWeightAveraging they are the model everywhere."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

log = logging.getLogger(__name__)


def averaging_of(callbacks: Iterable[Callback]) -> WeightAveraging | None:
    """The callback among them that averages weights, if there is one."""
    return next((callback for callback in callbacks if isinstance(callback, WeightAveraging)), None)


def averaged_by(callbacks: Iterable[Callback]) -> dict[str, str]:
    """What journals and checkpoints say of it: its class, or nothing."""
    found = averaging_of(callbacks)
    return {"averaged_by": type(found).__name__} if found else {}


@contextmanager
def averaged_weights(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Put the averages, if there are any, into the module for a while, as Lightning does for a validation."""
    averaging = averaging_of(trainer.callbacks)  # type: ignore[attr-defined]
    if averaging is None or averaging._average_model is None:
        yield
        return
    averaging._swap_models(pl_module)
    try:
        yield
    finally:
        averaging._swap_models(pl_module)


class AveragedWeights(Callback):
    """Let the averages be the model in all of a run, and resume exactly; added automatically.

    Lightning validates with them and saves them as the model. It would also evaluate and save the initial weights
    until the first update, and change those that train when training ends.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        averaging = averaging_of(trainer.callbacks)  # type: ignore[attr-defined]
        if averaging is None or averaging._average_model is None:
            return
        # The model's only buffers are tables of constants, which no checkpoint has: averaged, they drift by roundings,
        # and a resumed run starts from the true ones.
        averaging._average_model.use_buffers = False
        if trainer.precision == "64-true":
            # Made before the module is converted: each validation, which swaps them, would round the weights.
            averaging._average_model.double()
        # It would put the averages in the place of the weights, in the last checkpoint too, and the run could not be
        # made longer. They are the model of each checkpoint in any case.
        averaging.on_train_end = lambda *_: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in averaged_by(trainer.callbacks).values():  # type: ignore[attr-defined]
            log.info("%s: what is validated, sampled, saved as the model and exported is the averaged weights", name)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        averaging = averaging_of(trainer.callbacks)  # type: ignore[attr-defined]
        # Not the model's own count of updates, a tensor on the device: to read it, each step would wait for a GPU.
        if averaging is None or averaging._average_model is None or averaging._latest_update_step:
            return
        for average, now in zip(averaging._average_model.module.parameters(), pl_module.parameters(), strict=True):
            average.data.copy_(now.data)
