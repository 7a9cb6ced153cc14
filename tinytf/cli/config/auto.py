"""What `auto` in a config means on this machine: written into the config, so that it says what ran."""

from __future__ import annotations

from typing import Any

import torch

from tinytf.model import TransformerConfig
from tinytf.training.hardware import compile_pays, fastest_matmul, fastest_precision, training_device


def resolve_auto(config: Any) -> None:
    """Replace each `auto`: a resumed run, and one that is fed config.yaml, do the same."""
    trainer, device = config.trainer, training_device(str(config.trainer.accelerator))
    if trainer.precision == "auto":
        trainer.precision = fastest_precision(device)
    if trainer.matmul_precision == "auto":
        trainer.matmul_precision = fastest_matmul(trainer.precision, device)
    if config.model.compile == "auto":
        config.model.compile = compile_pays(run_flops(config), device)


def run_flops(config: Any) -> float:
    """FLOPs of all training steps, without the embedding, whose size only the data knows."""
    model, data, trainer = config.model, config.data, config.trainer
    per_token = TransformerConfig.from_mapping({**model, "vocab_size": 1}).flops_per_token(data.seq_len)
    windows = data.global_batch_size or data.batch_size * (trainer.accumulate_grad_batches or 1)
    return per_token * windows * data.seq_len * trainer.max_steps


def describe_execution(config: dict[str, Any]) -> str:
    """How the run is computed, in a few words for its first line."""
    trainer = config["trainer"]
    words = [trainer["precision"]]
    if trainer["matmul_precision"] != "highest":
        words.append(f"{trainer['matmul_precision']} matmul precision")
    if config["model"]["compile"]:
        words.append("blocks compiled")
    if training_device(str(trainer["accelerator"])) == "cpu":
        threads = torch.get_num_threads()
        words.append(f"{threads} thread{'s' if threads > 1 else ''}")
    return ", ".join(words)
