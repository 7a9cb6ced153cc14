"""Lightning's Trainer with steps as the only unit, and without the settings that an endless stream gives no meaning."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from tinytf.errors import UserError
from tinytf.training.hardware import multiplies_bf16

Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true"]


class Trainer(LightningTrainer):
    """Lightning's Trainer, all of its keys but those that count epochs.

    Args:
        max_steps: optimizer steps of the whole run.
        val_check_interval: optimizer steps between two validations.
        log_every_n_steps: optimizer steps between two rows of training metrics.
        accumulate_grad_batches: micro-batches whose gradients make one optimizer step.
        gradient_clip_val: largest norm of the whole gradient; null does not clip.
        precision: auto is bf16-mixed where the hardware multiplies bfloat16, else 32-true.
        num_sanity_val_steps: validation batches to try before training.
        enable_model_summary: print Lightning's table of modules at the start.
    """

    def __init__(
        self,
        *,
        max_steps: int = 1000,
        val_check_interval: int = 100,
        log_every_n_steps: int = 10,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = 1.0,
        precision: Precision = "auto",
        num_sanity_val_steps: int = 0,
        enable_model_summary: bool = False,
        **kwargs: Any,
    ) -> None:
        require_steps(
            max_steps=max_steps,
            val_check_interval=val_check_interval,
            log_every_n_steps=log_every_n_steps,
            accumulate_grad_batches=accumulate_grad_batches,
        )
        callbacks = kwargs.get("callbacks") or []
        for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
            if isinstance(callback, GradientAccumulationScheduler):
                raise UserError(
                    "trainer.callbacks: GradientAccumulationScheduler moves the steps away from the micro-batches that "
                    "validations and resuming are counted in; use trainer.accumulate_grad_batches"
                )
        super().__init__(
            max_steps=max_steps,
            # Lightning counts this one in micro-batches.
            val_check_interval=val_check_interval * accumulate_grad_batches,
            log_every_n_steps=log_every_n_steps,
            accumulate_grad_batches=accumulate_grad_batches,
            gradient_clip_val=gradient_clip_val,
            precision=fastest_precision() if precision == "auto" else precision,  # type: ignore[arg-type]
            num_sanity_val_steps=num_sanity_val_steps,
            enable_model_summary=enable_model_summary,
            # The training data are one endless stream whose batch k is known from k alone (tinytf.data.windows).
            # An epoch, a limit on its batches or another sampler would break that, and exact resume with it.
            max_epochs=-1,
            min_epochs=None,
            check_val_every_n_epoch=None,
            limit_train_batches=None,
            overfit_batches=0.0,
            reload_dataloaders_every_n_epochs=0,
            use_distributed_sampler=False,
            # A clock would stop it at a step that no other run stops at, in the middle of an accumulation too.
            max_time=None,
            # The run folder, its checkpoints and its loggers are the command line's `checkpoint` and `tracking`.
            default_root_dir=None,
            enable_checkpointing=True,
            fast_dev_run=False,
            barebones=False,
            model_registry=None,
            sync_batchnorm=False,
            **kwargs,
        )


def require_steps(**values: int) -> None:
    """Raise UserError with each number of steps that is none."""
    wrong = [f"trainer.{key} is {value}, but must be at least 1" for key, value in values.items() if value < 1]
    if wrong:
        raise UserError(*wrong)


def fastest_precision() -> Precision:
    """``bf16-mixed`` where this machine's default device multiplies bfloat16 in hardware, else ``32-true``."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return "bf16-mixed" if device and multiplies_bf16(device) else "32-true"
