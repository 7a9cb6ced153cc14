"""Values that the parser accepts and that nothing can be built from, refused before anything is built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_type_hints

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import instantiate_class

from tinytf.data.datamodule import TextDataModule
from tinytf.errors import UserError, require_at_least
from tinytf.export.formats import choose
from tinytf.model import TransformerConfig
from tinytf.model.config import ConfigurationError
from tinytf.run.config import CheckpointConfig
from tinytf.run.loggers import require_trackers
from tinytf.run.run import OptionalCallbacks

STEPS = ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches")


def validate(command: str, config: Any) -> None:
    """Raise UserError at the first value of a parsed config that is out of range or contradicts another.

    Args:
        command: fit trains, and needs an optimizer, a run directory and trackers; the others do not.
        config: after `auto` was resolved or before; it is not changed.
    """
    check_model(config.model)
    if config.data.seq_len > config.model.max_seq_len:
        raise UserError(
            f"data.seq_len {config.data.seq_len} is longer than model.max_seq_len {config.model.max_seq_len}"
        )
    TextDataModule(**config.data)
    CheckpointConfig(**config.checkpoint)
    require_at_least("trainer", **{key: (config.trainer[key], 1) for key in STEPS})
    check_ranges(config)
    check_device(config.trainer.accelerator)
    for name, callback in get_type_hints(OptionalCallbacks).items():
        callback(**config.tracking[name])
    if command == "fit":
        instantiate_class((), config.model.schedule)
        check_optimizer(config.model.optimizer)
        check_run_dir(config.name, Path(config.checkpoint.dir))
        require_trackers(config.tracking.wandb, config.tracking.mlflow)
        check_formats(config.export)


def check_model(model: Any) -> None:
    """Refuse a model's numbers that do not fit together."""
    try:
        TransformerConfig.from_mapping({**model, "vocab_size": 1})
    except ConfigurationError as error:
        raise UserError(f"model.{error.problems[0]}") from None


def check_optimizer(given: Any) -> None:
    """Refuse an optimizer that cannot be built for a matrix and a vector, in groups like the model's."""
    groups = [
        {"name": name, "params": [torch.nn.Parameter(torch.zeros(size))]}
        for name, size in (("matrices", (2, 2)), ("norm", (2,)))
    ]
    try:
        instantiate_class((groups,), given)
    except (ValueError, TypeError, RuntimeError) as error:
        kind = given.class_path.rpartition(".")[2]
        raise UserError(f"model.optimizer: {kind} cannot be built: {' '.join(str(error).split())}") from None


def check_ranges(config: Any) -> None:
    """Numbers that Lightning takes as they come, or ends in a traceback for."""
    least = {"trainer.min_steps": 0, "trainer.gradient_clip_val": 0, "trainer.num_sanity_val_steps": -1}
    for key, minimum in least.items():
        if config[key] is not None and config[key] < minimum:
            raise UserError(f"{key} is {config[key]}, but must be at least {minimum}")
    if not 0 <= config.seed_everything < 2**32:
        raise UserError(f"seed_everything is {config.seed_everything}, but must be at least 0 and below 2**32")


def check_run_dir(name: str, root: Path) -> None:
    """Refuse a place where no run directory can be made."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UserError(f"name {name!r}: the run directory is called so, and it is not a folder's name; give another")
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"checkpoint.dir {root}: {existing} is a file, and runs need a folder; give another folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"checkpoint.dir {root}: {existing} cannot be written to; give another folder")


def check_formats(export: Any) -> None:
    """Refuse formats that do not exist, or whose packages are missing if they are to be exported at the end."""
    try:
        choose(export.formats, installed=export.at_end)
    except UserError as error:
        raise UserError(f"export.formats: {error}") from None


def check_device(name: Any) -> None:
    """Refuse hardware that this machine lacks, by the name that asks for it."""
    if not isinstance(name, str) or name == "auto":
        return
    known = AcceleratorRegistry.available_accelerators()
    if name != "gpu" and name not in known:
        raise UserError(f"trainer.accelerator: expected auto or gpu or {' or '.join(sorted(known))}, got {name}")
    asked = ("cuda", "mps") if name == "gpu" else (name,)
    if not any(AcceleratorRegistry[each]["accelerator"].is_available() for each in asked):
        raise UserError(
            f"trainer.accelerator {name}: this machine has none that PyTorch {torch.__version__} can use; "
            "leave it at auto, or give cpu"
        )
