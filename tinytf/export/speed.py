"""Tokens a second of an artefact, the same way for every runtime."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tinytf.export.runner import Runner

PROMPT, NEW, PREFILL = 16, 128, 240
REPEATS = 5
ENOUGH_SECONDS = 4.0


@dataclass(frozen=True)
class Speed:
    """Batch 1, tokens a second: ``prefill`` reads up to 240 tokens at once; ``decode`` writes up to 128 greedy tokens
    after a prompt of 16, the prompt's time included. The best of up to 5 runs after one that is not counted: other
    work on the machine can only add time."""

    prefill: float
    decode: float


def measure(runner: Runner, passage: Tensor, max_seq_len: int) -> Speed:
    """Time a runner on held-out ids, ``[seq]``, of which it needs 240 or the context."""
    prefill = min(PREFILL, max_seq_len, len(passage))
    prompt = min(PROMPT, max(1, max_seq_len // 2))
    new = min(NEW, max_seq_len - prompt)
    with torch.inference_mode():
        reading = _seconds(lambda: runner.start(1)(passage[None, :prefill]))
        writing = _seconds(lambda: _write(runner, passage[None, :prompt], new))
    return Speed(prefill / reading, new / writing)


def _write(runner: Runner, prompt: Tensor, new: int) -> None:
    feed, tokens = runner.start(1), prompt
    for _ in range(new):
        tokens = feed(tokens)[:, -1:].argmax(-1)


def _seconds(work: Callable[[], object]) -> float:
    work()
    taken: list[float] = []
    while len(taken) < REPEATS and sum(taken) < ENOUGH_SECONDS:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
