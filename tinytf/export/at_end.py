"""Export the best checkpoint when training ends."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from tokenizers import Tokenizer

from tinytf.errors import RunError
from tinytf.export.formats import DEFAULT, Format, choose
from tinytf.model import Transformer, TransformerConfig
from tinytf.run.loggers.follower import Follower
from tinytf.weights.checkpoint import LoadedModel

log = logging.getLogger(__name__)


@dataclass
class ExportConfig:
    """The `export` section of a config.

    Args:
        at_end: export the best checkpoint when training ends, and give the bundle to the trackers.
        formats: which; tinytf export --help lists them.
    """

    at_end: bool = False
    formats: list[str] = field(default_factory=lambda: list(DEFAULT))


def require_exportable_config(formats: Sequence[Format], config: TransformerConfig, tokenizer: Tokenizer) -> None:
    """Raise UserError if a format cannot express the model that is to be trained: not after hours of training it."""
    from tinytf.export.bundle import require_exportable  # Not with fit's other imports: most runs export nothing.

    with torch.device("meta"):
        require_exportable(formats, LoadedModel(Transformer(config), tokenizer))


def export_at_end(ckpt_path: Path, config: ExportConfig, loggers: Iterable[Logger] = ()) -> dict[str, Any]:
    """Do what `tinytf export --ckpt_path best` does, print its table and give the bundle to the trackers.

    Returns:
        The content of ``export.json``.

    Raises:
        RunError: if a format did not pass; names it.
        UserError: as `export_checkpoint`.
    """
    from tinytf.export.bundle import export_checkpoint
    from tinytf.export.parity.report import report

    content = export_checkpoint(ckpt_path, choose(config.formats), own=True, say=log.info)
    print(report(content))
    if content["failed"]:
        names = ", ".join(entry["name"] for entry in content["failed"])
        raise RunError(f"export: {names} did not pass; the checkpoint {ckpt_path} is whole")
    for logger in loggers:
        if isinstance(logger, Follower):
            logger.log_export(ckpt_path.resolve().parent / "export")
    return content
