"""What a validation reports, as torchmetrics: exact over the whole split and over every process."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection


class TokenLoss(Metric):
    """Mean negative log-likelihood of a token, in nats."""

    full_state_update = False
    higher_is_better = False
    nll: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, nll: Tensor, tokens: Tensor) -> None:
        """Add the summed loss (nats) of ``tokens`` targets."""
        self.nll += nll
        self.tokens += tokens

    def compute(self) -> Tensor:
        return self.nll / self.tokens


class Perplexity(TokenLoss):
    """exp of the mean loss: how many tokens the model hesitates between."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class BitsPerByte(TokenLoss):
    """Bits to code one UTF-8 byte of the text: the same unit under every tokenizer, so that char and BPE compare.

    Args:
        bytes_per_token: of the split that is evaluated.
    """

    def __init__(self, bytes_per_token: float) -> None:
        super().__init__()
        self.bytes_per_token = bytes_per_token

    def compute(self) -> Tensor:
        return super().compute() / (math.log(2) * self.bytes_per_token)


def evaluation_metrics(split: str, bytes_per_token: float | None) -> MetricCollection:
    """``<split>/loss``, ``<split>/perplexity`` and ``<split>/bits_per_byte`` over one shared sum."""
    names = {"loss": TokenLoss(), "perplexity": Perplexity()}
    if bytes_per_token is not None:
        names["bits_per_byte"] = BitsPerByte(bytes_per_token)
    return MetricCollection(
        {f"{split}/{name}": metric for name, metric in names.items()},
        compute_groups=[[f"{split}/{name}" for name in names]],
    )
