"""What explains a run, put where it is looked for: into every checkpoint, and into every tracker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.run.callbacks.checkpoints import best_checkpoints
from tinytf.run.checkpoint import FORMAT
from tinytf.run.loggers.base import as_code_block, hyperparameters, trackers
from tinytf.utils.text import public


class CheckpointMetadata(Callback):
    """Add to every checkpoint all that rebuilds and explains it, in plain types; added automatically.

    Args:
        config: the resolved configuration.
        provenance: where the run comes from, see `tinytf.run.provenance.collect`.
    """

    def __init__(self, config: dict[str, Any], provenance: dict[str, Any]) -> None:
        self.config = config
        self.provenance = provenance

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["tinytf"] = {
            "format": FORMAT,
            "model": asdict(pl_module.model.config),  # type: ignore[arg-type, union-attr]
            "tokenizer": data.tokenizer.to_str(),
            "config": self.config,
            "data": public(data.fingerprint),
            "provenance": self.provenance,
            "world_size": trainer.world_size,
        }


class LogRunMetadata(Callback):
    """Log config and provenance when training starts, and the best checkpoint when it has ended; added automatically.

    Args:
        config: the resolved config.
        provenance: see `tinytf.run.provenance.collect`.
    """

    def __init__(self, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        self.config = config
        self.provenance = provenance

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        config = json.dumps(self.config, indent=2, default=str)
        provenance = json.dumps(self.provenance, indent=2, ensure_ascii=False)
        for tracker in trackers(trainer):
            tracker.log_hyperparams(hyperparameters(self.config))
            tracker.log_text("config", as_code_block(config), trainer.global_step)
            tracker.log_text("provenance", as_code_block(provenance), trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = best_checkpoints(trainer)
        if best and best.best_model_path and trainer.is_global_zero:
            for tracker in trackers(trainer):
                tracker.log_best(Path(best.best_model_path))
