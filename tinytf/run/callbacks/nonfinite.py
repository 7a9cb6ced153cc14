"""The batch at which a run stopped because its loss or gradient was not finite, kept for a look."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.errors import RunError
from tinytf.run.callbacks.checkpoints import PeriodicCheckpoint
from tinytf.run.checkpoint_io import write_durably
from tinytf.training.lightning_module import NonFiniteError


class SaveNonFinite(Callback):
    """Writes ``nonfinite_step=….pt`` beside the checkpoints: the micro-batches of the step and their losses.

    ``torch.load(path, weights_only=True)`` gives ``step``, ``message``, ``batches`` (pairs of tokens and targets,
    [B, T] each, as they came from the data) and ``losses`` (one a batch). Every process writes its own.

    Args:
        periodic: knows the run's folder.
    """

    def __init__(self, periodic: PeriodicCheckpoint) -> None:
        self.periodic = periodic
        self.step = -1
        self.batches: list[Any] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.step:
            self.step, self.batches = trainer.global_step, []
        self.batches.append(batch)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, NonFiniteError):
            return
        rank = f"-rank={trainer.global_rank}" if trainer.global_rank else ""
        path = self.periodic.folder / f"nonfinite_step={self.step + 1:07d}{rank}.pt"
        content = {
            "step": self.step + 1,
            "message": str(exception),
            "batches": [[part.cpu() for part in batch] for batch in self.batches],
            "losses": [loss.cpu() for loss in exception.losses],
        }
        try:
            write_durably(path, content)
        except RunError as error:
            exception.args = (f"{exception}; {error}",)
        else:
            exception.args = (f"{exception}; its batch is in {path}",)
