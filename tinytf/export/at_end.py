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
        formats: which; tinytf export --help lists them. Of default, those that the model cannot be in are left out.
    """

    at_end: bool = False
    formats: list[str] = field(default_factory=lambda: [DEFAULT])


def require_exportable_config(formats: Sequence[Format], config: TransformerConfig, tokenizer: Tokenizer) -> None:
    """Refuse a format that cannot express the model that is to be trained, and say which of the default formats will be
    left out: not after hours of training it.

    Raises:
        UserError: if the user named a format that cannot express the model.
    """
    # Not with fit's other imports: most runs export nothing.
    from tinytf.export.bundle import say_skipped, skipped_formats

    with torch.device("meta"):
        say_skipped(skipped_formats(formats, LoadedModel(Transformer(config), tokenizer)), log.info)


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
