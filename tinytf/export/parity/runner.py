"""One interface to every runtime: feed token ids, get the logits of each; and its speed, measured the same way."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tinytf.model import KVCache, Transformer

SPEED_PROMPT, NEW, PREFILL = 16, 128, 240
# The same row differed by a tenth from sweep to sweep on a shared machine; other work can only add time.
REPEATS = 5
ENOUGH_SECONDS = 6.0

Feed = Callable[[Tensor], Tensor]
"""Takes the ids that follow those already fed, ``[batch, new]``; returns their logits, ``[batch, new, vocab_size]``."""


def _hold_nothing() -> None:
    """What most runtimes have to close."""


@dataclass(frozen=True)
class Runner:
    """An artifact loaded in its own runtime.

    Args:
        runtime: name and version of what runs it.
        start: begins sequences of a batch size and returns what feeds them.
        cached: whether a feed costs its new tokens alone.
        max_batch: the largest batch the runtime takes, None for any.
        close: ends what the runtime holds besides memory, such as a process.
    """

    runtime: str
    start: Callable[[int], Feed]
    cached: bool = True
    max_batch: int | None = None
    close: Callable[[], None] = _hold_nothing

    def logits(self, tokens: Tensor, chunks: Sequence[int] | None = None) -> Tensor:
        """Logits of whole sequences ``[batch, seq]``, fed in chunks of these lengths (None: at once)."""
        if self.max_batch is not None and len(tokens) > self.max_batch:
            return torch.cat([self.logits(rows, chunks) for rows in torch.split(tokens, self.max_batch)])
        feed = self.start(len(tokens))
        return torch.cat([feed(part) for part in torch.split(tokens, list(chunks or [tokens.shape[1]]), dim=1)], dim=1)


def recomputing(forward: Callable[[Tensor], Tensor]) -> Callable[[int], Feed]:
    """``start`` for a runtime without a cache: each feed runs the whole sequence again."""

    def start(batch_size: int) -> Feed:
        seen = torch.empty(batch_size, 0, dtype=torch.long)

        def feed(tokens: Tensor) -> Tensor:
            nonlocal seen
            seen = torch.cat((seen, tokens), dim=1)
            return forward(seen)[:, -tokens.shape[1] :]

        return feed

    return start


def eager(model: Transformer) -> Runner:
    """The model itself, with its key-value cache: the reference for speed."""

    def start(batch_size: int) -> Feed:
        cache = KVCache.empty(model.config, batch_size)

        def feed(tokens: Tensor) -> Tensor:
            with torch.inference_mode():
                logits: Tensor = model(tokens, cache)
            return logits

        return feed

    return Runner(f"torch {torch.__version__}", start)


@contextmanager
def reference_precision(threads: int) -> Iterator[None]:
    """Full float32 products on this many threads; both settings are put back."""
    precision, before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and log lines below ERROR: exporters print dozens. Errors still raise; all is put back."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # torch.jit.trace and load each warn that they will go; the table's label says it once.
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


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
    prompt = min(SPEED_PROMPT, max(1, max_seq_len // 2))
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
