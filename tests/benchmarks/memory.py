"""The memory estimate of `tinytf plan`, and measured peaks: `python -m tests.benchmarks memory`, minutes on a CPU.

A peak is the most that torch's allocator has given out at any moment from the model's construction to the end of the
second optimizer step, as its profiler records each allocation and release. It is the same in every run.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from typing import Any

import torch

from tinytf.model import Transformer, TransformerConfig
from tinytf.training import MuonAdamW
from tinytf.training.loss import mean_loss
from tinytf.training.memory_estimate import StepSpec, estimate, largest_batch
from tinytf.training.optim.groups import freeze, parameter_groups
from tinytf.weights.adapter import attach_adapter

STEPS = {
    "0.9M, char": StepSpec(TransformerConfig(70, 128, 2, 4, max_seq_len=128), 8, 128),
    "13M, bpe": StepSpec(TransformerConfig(8192, 256, 4, 8, max_seq_len=256), 8, 256),
    "51M, bpe, medium.yaml's": StepSpec(TransformerConfig(8192, 512, 8, 12, d_ff=2048, max_seq_len=512), 1, 512),
}


def measure_peak(step: StepSpec, steps: int = 2) -> int:
    """The largest sum of allocated bytes in real training steps."""
    tokens = torch.randint(step.config.vocab_size, (step.batch, step.seq_len))
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        model = Transformer(step.config)
        freeze(model, step.freeze)
        if step.adapter:
            attach_adapter(model, step.adapter)
        optimizer = MuonAdamW(parameter_groups(model))
        for _ in range(steps):
            mean_loss(model, tokens, tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    events = (e for e in profile.kineto_results.events() if e.name() == "[memory]")
    ordered = sorted((event.start_ns(), number, event.nbytes()) for number, event in enumerate(events))
    return max(itertools.accumulate(change for _, _, change in ordered))


def run(args: argparse.Namespace) -> dict[str, Any]:
    print(f"{'MB':<26}{'batch':>6}{'planned':>10}{'measured':>10}{'ratio':>7}{'kB per token':>14}  peak phase")
    found = {}
    for name, small in STEPS.items():
        # The named micro-batch for half as much memory again, too.
        limit = 1.5 * estimate(small).peak
        for step in (small, StepSpec(small.config, largest_batch(small, limit), small.seq_len)):
            plan, real = estimate(step), measure_peak(step)
            # What one more token takes, without what the model takes at any batch size.
            token = (real - estimate(replace(step, batch=0)).peak) / (step.batch * step.seq_len)
            print(
                f"{name:<26}{step.batch:>6}{plan.peak / 1e6:>10.1f}{real / 1e6:>10.1f}{plan.peak / real:>7.2f}"
                f"{token / 1e3:>14.1f}  {plan.peak_phase}",
                flush=True,
            )
            found[f"{name}, batch {step.batch}"] = {
                "planned_mb": round(plan.peak / 1e6, 1),
                "measured_mb": round(real / 1e6, 1),
                "kb_per_token": round(token / 1e3, 1),
            }
    return {"peak": found}
