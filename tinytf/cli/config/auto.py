"""What `auto` in a config means on this machine, and how that is said."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from tinytf.errors import UserError
from tinytf.model import TransformerConfig
from tinytf.run.callbacks.throughput import flops_per_token
from tinytf.training.automatic import compile_pays, fastest_matmul, fastest_precision, training_device


def decide(config: Any) -> None:
    """Write what `auto` means here into the config: it says what ran, and a resumed run does the same."""
    trainer, device = config.trainer, training_device(str(config.trainer.accelerator))
    if trainer.precision == "auto":
        trainer.precision = fastest_precision(device)
    if trainer.matmul_precision == "auto":
        trainer.matmul_precision = fastest_matmul(trainer.precision, device)
    if config.model.compile == "auto":
        config.model.compile = compile_pays(run_flops(config), device)
    if config.data.seq_len > config.model.max_seq_len:
        raise UserError(
            f"data.seq_len {config.data.seq_len} is longer than model.max_seq_len {config.model.max_seq_len}"
        )


def run_flops(config: Any) -> float:
    """FLOPs of all training steps; the embedding, whose size the data will tell, is left out."""
    model, data, trainer = config.model, config.data, config.trainer
    shape = {field.name: model[field.name] for field in fields(TransformerConfig) if field.name in model}
    try:
        per_token = flops_per_token(TransformerConfig(vocab_size=1, **shape), data.seq_len)
    except ValueError:  # The model says it better.
        return 0.0
    windows = data.global_batch_size or data.batch_size * (trainer.accumulate_grad_batches or 1)
    return per_token * windows * data.seq_len * trainer.max_steps


def how_it_runs(config: dict[str, Any]) -> str:
    """What was chosen for this machine, in a few words."""
    trainer = config["trainer"]
    said = [trainer["precision"]]
    if trainer["matmul_precision"] != "highest":
        said.append(f"{trainer['matmul_precision']} matmul precision")
    if config["model"]["compile"]:
        said.append("blocks compiled")
    if training_device(str(trainer["accelerator"])) == "cpu":
        said.append(f"{torch.get_num_threads()} thread{'s'[: torch.get_num_threads() > 1]}")
    return ", ".join(said)
