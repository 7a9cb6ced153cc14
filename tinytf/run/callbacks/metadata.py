"""What explains a run, put into every checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.run.callbacks.averaging import averaged_by
from tinytf.utils.text import public
from tinytf.weights.checkpoint import FORMAT


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
        optional = {
            "base": getattr(pl_module, "base_identity", None),
            "adapter": adapter.plain() if (adapter := getattr(pl_module, "adapter", None)) else None,
            "chat_template": getattr(data, "chat_template", None),
        }
        checkpoint["tinytf"] = {
            "format": FORMAT,
            "model": asdict(pl_module.model.config),  # type: ignore[arg-type, union-attr]
            "tokenizer": data.tokenizer.to_str(),
            "config": self.config,
            "data": public(data.fingerprint),
            "provenance": self.provenance,
            "world_size": trainer.world_size,
            **{key: value for key, value in optional.items() if value is not None},
            **averaged_by(trainer.callbacks),  # type: ignore[attr-defined]
        }
