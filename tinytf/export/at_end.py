"""The callback that exports when training ends."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tokenizers import Tokenizer

from tinytf.errors import RunError
from tinytf.export.formats import DEFAULT, choose
from tinytf.export.subject import Subject
from tinytf.model import Transformer, TransformerConfig
from tinytf.run.loggers.base import trackers

log = logging.getLogger(__name__)


@dataclass
class ExportSettings:
    """The `export` section of a config.

    Args:
        at_end: export the best checkpoint when training ends, and give the bundle to the trackers.
        formats: which; tinytf export --help lists them.
    """

    at_end: bool = False
    formats: list[str] = field(default_factory=lambda: list(DEFAULT))


class ExportAtEnd(Callback):
    """Does what `tinytf export --ckpt_path best` does, once the training has ended; one that a signal stops goes on.

    Args:
        formats: names of formats.

    Raises:
        UserError: at once, where a format is unknown or its packages are missing.
    """

    def __init__(self, formats: list[str]) -> None:
        self.formats = choose(formats)

    def refuse_unfit(self, config: TransformerConfig, tokenizer: Tokenizer) -> None:
        """Raise UserError where a format cannot express the model: not after hours of training it."""
        from tinytf.export.bundle import refuse_unfit

        with torch.device("meta"):
            subject = Subject(Transformer(config), tokenizer)
        refuse_unfit(self.formats, subject)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        best: Any = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if best:
            self._export(trainer, Path(best))
        else:
            log.warning("export: no checkpoint was kept as the best (checkpoint.save_top_k, val_check_interval)")

    def _export(self, trainer: Trainer, best: Path) -> None:
        from tinytf.export.checkpoint import export_checkpoint
        from tinytf.export.report import table

        content = export_checkpoint(best, self.formats, say=log.info)
        print(table(content))
        if content["failed"]:
            names = ", ".join(entry["name"] for entry in content["failed"])
            raise RunError(f"export: {names} did not pass; the checkpoint {best} is whole")
        for tracker in trackers(trainer):
            tracker.log_export(best.resolve().parent / "export")
