"""Tokens a second of `tinytf generate`'s engine, with its cache and without one, and how a batch of samples scales."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from tinytf.generation.decoding import TransformerEngine, decode
from tinytf.generation.sampling import Sampling
from tinytf.model import Transformer, TransformerConfig

CONFIG = TransformerConfig(66, d_model=256, n_heads=4, n_layers=4, max_seq_len=256)
NEW = 192
BATCHES = (1, 4, 16)


class Uncached(TransformerEngine):
    """Reads the whole text again for every token."""

    def prefill(self, tokens: Tensor) -> Tensor:
        self.text = tokens
        return super().prefill(tokens)

    def step(self, tokens: Tensor) -> Tensor:
        return self.prefill(torch.cat((self.text, tokens[:, None]), dim=1))


def tokens_per_second(engine: TransformerEngine, samples: int) -> float:
    prompt = list(range(256 - NEW))
    steps: Iterator[Tensor] = decode(engine, [token % 66 for token in prompt], Sampling(0.8), range(samples))
    began = time.perf_counter()
    for _ in islice(steps, NEW):
        pass
    return NEW * samples / (time.perf_counter() - began)


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    # As `tinytf generate` runs: one thread is the fastest for one token at a time.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = Transformer(CONFIG)
    cached, uncached = TransformerEngine(model), Uncached(model)
    pairs = [(tokens_per_second(uncached, 1), tokens_per_second(cached, 1)) for _ in range(args.rounds)]
    slow, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"context 256, 4 layers, 256 wide: {slow:,.0f} tokens/s uncached, {fast:,.0f} cached, {ratio:.1f}x")
    batched = {n: statistics.median(tokens_per_second(cached, n) for _ in range(3)) for n in BATCHES}
    print("samples at once: " + ", ".join(f"{n}: {speed:,.0f} tokens/s" for n, speed in batched.items()), flush=True)
    torch.set_num_threads(threads)
    return {"uncached": slow, "cached": fast, "ratio": ratio, "tokens_per_second_by_samples": batched}
