"""Save the batch at which a run stopped because its loss or gradient was not finite."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.errors import RunError
from tinytf.run.callbacks import run_dir_of
from tinytf.run.checkpoint_io import write_checkpoint
from tinytf.training.lightning_module import NonFiniteError


class SaveNonFinite(Callback):
    """Write ``nonfinite_step=….pt`` into the run directory: the step's micro-batches and losses; added automatically.

    ``torch.load(path, weights_only=True)`` gives ``step``, ``message``, ``batches`` (pairs of tokens and targets,
    [B, T] each, as they came from the data) and ``losses`` (one per batch). Every process writes its own.
    """

    def __init__(self) -> None:
        self._step = -1
        self._batches: list[Any] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self._step:
            self._step, self._batches = trainer.global_step, []
        self._batches.append(batch)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, NonFiniteError):
            return
        rank = f"-rank={trainer.global_rank}" if trainer.global_rank else ""
        path = run_dir_of(trainer) / f"nonfinite_step={self._step + 1:07d}{rank}.pt"
        content = {
            "step": self._step + 1,
            "message": str(exception),
            "batches": [[part.cpu() for part in batch] for batch in self._batches],
            "losses": [loss.cpu() for loss in exception.losses],
        }
        try:
            write_checkpoint(path, content)
        except RunError as error:
            exception.args = (f"{exception}; {error}",)
        else:
            exception.args = (f"{exception}; its batch is in {path}",)
