"""One interface to every runtime: feed token ids, get the logits of each."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tinytf.model import KVCache, Transformer

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
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
