"""From next-token logits to the next token: pure functions, and one random number per token and completion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_TEMPERATURE = 1e-6
"""Logits reach some hundreds; divided by less than 1e-300 they would overflow, and below 1e-6 sampling is greedy."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The cuts apply in this order.

    Args:
        temperature: divides the logits first; 0 takes the most probable token and draws nothing.
        top_k: keep the k most probable tokens (Fan et al. 2018, arXiv:1805.04833); None keeps all.
        top_p: of those, keep the fewest that hold this share of the probability (Holtzman et al. 2019,
            arXiv:1904.09751); None keeps all.
        min_p: of those, keep what is at least this many times as probable as the most probable one
            (Nguyen et al. 2024, arXiv:2407.01082); None keeps all.

    Raises:
        ValueError: if a value is out of range; the message starts with its name.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not (self.temperature == 0.0 or SMALLEST_TEMPERATURE <= self.temperature < math.inf):
            raise ValueError(
                f"temperature is {self.temperature}, but must be 0 (greedy) or at least {SMALLEST_TEMPERATURE}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, but must be at least 1")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}, but must be above 0 and at most 1")
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p is {self.min_p}, but must be between 0 and 1")


def sample(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """One token per row: ``[batch]`` from logits ``[batch, vocab]`` on the CPU.

    Each row has a generator of its own, so that what a row draws does not depend on the other rows.

    Raises:
        FloatingPointError: if a row's logits are not finite, as those of a model whose training diverged.
    """
    if not torch.isfinite(logits.amax(dim=-1)).all():
        raise FloatingPointError("the model's logits are not finite")
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1)
    # Inverting the distribution in the order of the ids, in float64, takes one number per row, and a rounding
    # error of the logits moves the outcome only where that number falls next to a boundary between two tokens.
    cumulative = probabilities(logits, sampling).cumsum(dim=-1)
    draws = torch.stack([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    return torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).squeeze(-1)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is drawn from, ``[batch, vocab]`` in float64; the temperature must be above 0."""
    logits = logits.double() / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits.softmax(dim=-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k largest of each row and what equals the last of them; the rest is -inf."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest most probable tokens of each row that hold at least p together; the rest is -inf."""
    ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    # A token goes when those before it already hold p: the first one always stays.
    surplus = ordered.cumsum(dim=-1) - ordered >= p
    return logits.masked_fill(torch.zeros_like(surplus).scatter(-1, order, surplus), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """What is at least p times as probable as its row's most probable token; the rest is -inf."""
    floor = logits.amax(dim=-1, keepdim=True) + (math.log(p) if p > 0.0 else -math.inf)
    return logits.masked_fill(logits < floor, -math.inf)
