"""What Muon costs: its share of a training step, batched over matrices of a shape and, as torch has it, one by one."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tinytf.model import Transformer, TransformerConfig
from tinytf.training import MuonAdamW
from tinytf.training.attention import choose_attention
from tinytf.training.hardware import fastest_precision
from tinytf.training.loss import mean_loss
from tinytf.training.optim.groups import parameter_groups

SHAPES = {
    "4 layers, 256 wide, 2,048 tokens": (4, 256, 4, 256, 8),
    "6 layers, 384 wide, 2,048 tokens": (6, 384, 6, 256, 8),
}
"""n_layers, d_model, n_heads, seq_len, batch_size."""


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def gradients(model: nn.Module, seq_len: int, batch_size: int, bf16: bool) -> None:
    tokens = torch.randint(66, (batch_size, seq_len))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        loss = mean_loss(model, tokens, tokens)  # type: ignore[arg-type]
    loss.backward()


def run(args: argparse.Namespace) -> dict[str, Any]:
    found, precision = {}, fastest_precision("cpu")
    print(f"{'share of a step':<36}{'AdamW':>8}{'Muon':>8}{'per neuron':>12}{'torch Muon':>12}")
    for name, (n_layers, d_model, n_heads, seq_len, batch_size) in SHAPES.items():
        model = Transformer(TransformerConfig(66, d_model, n_heads, n_layers, max_seq_len=seq_len))
        choose_attention(model, torch.device("cpu"), precision)
        groups = parameter_groups(model)
        matrices = groups[0]["params"]
        optimizers: dict[str, Callable[[], object]] = {
            "adamw": torch.optim.AdamW(model.parameters(), fused=True).step,
            "muon": MuonAdamW(groups, per_neuron=False).step,
            "muon_per_neuron": MuonAdamW(groups).step,
            "torch_muon": torch.optim.Muon(matrices).step,
        }
        step: list[float] = []
        times: dict[str, list[float]] = {key: [] for key in optimizers}
        for _ in range(args.rounds + 1):
            step.append(seconds(lambda: gradients(model, seq_len, batch_size, precision == "bf16-mixed")))  # noqa: B023
            for key, update in optimizers.items():
                times[key].append(seconds(update))
        # The first round warms up.
        passes = statistics.median(step[1:])
        medians = {key: statistics.median(value[1:]) for key, value in times.items()}
        shares = {key: value / (value + passes) for key, value in medians.items()}
        print(
            f"{name:<36}{shares['adamw']:>8.1%}{shares['muon']:>8.1%}{shares['muon_per_neuron']:>12.1%}"
            f"{shares['torch_muon']:>12.1%}",
            flush=True,
        )
        found[name] = shares
    return {"share_of_step": found}
