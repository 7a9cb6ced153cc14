"""Tokens per second of an artifact, measured the same way for every runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tinytf.export.parity.runner import Runner

PROMPT, NEW, PREFILL = 16, 128, 240
REPEATS = 5
ENOUGH_SECONDS = 6.0


@dataclass(frozen=True)
class Speed:
    """Batch 1, tokens per second: ``prefill`` reads up to 240 tokens at once; ``decode`` writes up to 128 greedy tokens
    after a prompt of 16, the prompt's time included. The best of up to 5 runs after one that is not counted: other
    work on the machine can only add time. Those that are compared take turns, so that it adds to each."""

    prefill: float
    decode: float


def measure(runners: Sequence[Runner], passage: Tensor, max_seq_len: int) -> list[Speed]:
    """Time runners in turns on held-out ids, ``[seq]``, of which they need 240 or the context."""
    prefill = min(PREFILL, max_seq_len, len(passage))
    prompt = min(PROMPT, max(1, max_seq_len // 2))
    new = min(NEW, max_seq_len - prompt)
    with torch.inference_mode():
        reading = _seconds([partial(_read, runner, passage[None, :prefill]) for runner in runners])
        writing = _seconds([partial(_write, runner, passage[None, :prompt], new) for runner in runners])
    return [Speed(prefill / read, new / written) for read, written in zip(reading, writing, strict=True)]


def _read(runner: Runner, tokens: Tensor) -> None:
    runner.start(1)(tokens)


def _write(runner: Runner, prompt: Tensor, new: int) -> None:
    feed, tokens = runner.start(1), prompt
    for _ in range(new):
        tokens = feed(tokens)[:, -1:].argmax(-1)


def _seconds(works: Sequence[Callable[[], None]]) -> list[float]:
    for work in works:
        work()
    rounds: list[list[float]] = []
    while len(rounds) < REPEATS and sum(map(sum, rounds)) < ENOUGH_SECONDS:
        rounds.append([_timed(work) for work in works])
    return [min(taken) for taken in zip(*rounds, strict=True)]


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
