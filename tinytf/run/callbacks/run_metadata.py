"""The callback that gives every tracker what stands beside the numbers: config, provenance, the best checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.run.loggers.tracker import Tracker, fenced, flat


class Dashboards(Callback):
    """Logs hyperparameters, config and provenance when training starts, and the best checkpoint when it has ended.

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
            tracker.log_hyperparams(flat(self.config))
            tracker.log_text("config", fenced(config), trainer.global_step)
            tracker.log_text("provenance", fenced(provenance), trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if best and trainer.is_global_zero:
            for tracker in trackers(trainer):
                tracker.log_best(Path(best))


def trackers(trainer: Trainer) -> list[Tracker]:
    """Those of a trainer's loggers that are ours; any other Lightning logger gets the metrics alone."""
    return [logger for logger in trainer.loggers if isinstance(logger, Tracker)]
