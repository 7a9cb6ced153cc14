"""Log how large each layer's weights, gradients and updates are."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from tinytf.errors import UserError, require_at_least
from tinytf.run.callbacks.journal import log_to_row
from tinytf.training.distributed.dtensor import total_norm


class LayerwiseNorms(Callback):
    """Log ``layers/<i>/weight_norm``, ``…/grad_norm`` (before clipping) and ``…/update_norm``, and ``embed/…``.

    Every so many steps the weights are copied for the length of one optimizer step; other steps cost nothing.

    Args:
        every_n_steps: log each layer's weight, gradient and update norm every so many steps, a multiple of
            trainer.log_every_n_steps; 0 never does.
    """

    def __init__(self, every_n_steps: int = 0) -> None:
        require_at_least("tracking.norms", every_n_steps=(every_n_steps, 0))
        self.every_n_steps = every_n_steps
        self._before: dict[str, list[Tensor]] = {}
        self._values: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        row_every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.every_n_steps and (row_every == 0 or self.every_n_steps % row_every):
            raise UserError(
                f"tracking.norms.every_n_steps is {self.every_n_steps}, but must be a multiple of "
                f"trainer.log_every_n_steps, {row_every}: rows are written then"
            )

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self.every_n_steps or (trainer.global_step + 1) % self.every_n_steps:
            return
        for name, parameters in layers(pl_module.model).items():  # type: ignore[arg-type]
            self._before[name] = [parameter.detach().clone() for parameter in parameters]
            self._values[f"{name}/grad_norm"] = total_norm([p.grad for p in parameters if p.grad is not None])

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self._before:
            return
        for name, parameters in layers(pl_module.model).items():  # type: ignore[arg-type]
            changes = [now.detach() - before for now, before in zip(parameters, self._before[name], strict=True)]
            self._values[f"{name}/weight_norm"] = total_norm(parameters)
            self._values[f"{name}/update_norm"] = total_norm(changes)
        log_to_row(trainer, self._values)
        self._before, self._values = {}, {}


def layers(model: nn.Module) -> dict[str, list[Tensor]]:
    """The parameters of each block, and of the embedding, by the name they are logged under."""
    blocks: Any = model.layers
    found = {f"layers/{index}": list(block.parameters()) for index, block in enumerate(blocks)}
    embedding: Any = model.embed_tokens
    return found | {"embed": list(embedding.parameters())}
