"""Next-token cross-entropy, without ever holding all logits of a large vocabulary in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tinytf.data.windows import IGNORE_INDEX
from tinytf.model import Transformer

LOGITS_AT_ONCE = {"cpu": 2**25, "cuda": 2**28}
"""Logits in one chunk, by device: 128 MiB and 1 GiB of float32."""


def token_losses(model: Transformer, tokens: Tensor, targets: Tensor, positions: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of each target in nats, 0 where it is -100; all ``[batch, seq]``.

    Args:
        positions: of each token in its document, as `Transformer.forward` takes them.
    """
    hidden, flat = model.hidden(tokens, positions=positions).flatten(0, 1), targets.flatten()
    if positions is None:
        return _chunked(model, hidden, flat).view_as(targets)
    # No logits of prompts and padding: with 49,152 tokens the unembedding is a fifth of a model of 135M parameters.
    learned = (flat != IGNORE_INDEX).nonzero().squeeze(1)
    losses = _chunked(model, hidden[learned], flat[learned])
    return losses.new_zeros(len(flat)).index_put((learned,), losses).view_as(targets)


def _chunked(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    rows = logits_at_once(model.config.vocab_size, hidden.device.type)
    if len(hidden) <= rows:
        return _losses(model, hidden, targets)
    # Each chunk's logits are made again in the backward pass: a third more work in the head, none of its memory.
    # torch 2.13's F.linear_cross_entropy takes a quarter of this memory at the same speed in float32 (50,257 x 768,
    # 2,048 tokens, one CPU core: +0.4 GB and 17 s against +1.1 to 2.0 GB and 14 to 19 s), but it ignores autocast: with
    # bf16-mixed, the head would be computed in float32. And torch 2.11 has none.
    chunks = [
        checkpoint(_losses, model, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)  # type: ignore[no-untyped-call]
    ]
    return torch.cat(chunks)


def logits_at_once(vocab_size: int, device: str) -> int:
    """Rows of logits in one chunk."""
    return max(1, LOGITS_AT_ONCE.get(device, LOGITS_AT_ONCE["cpu"]) // vocab_size)


def mean_loss(model: Transformer, tokens: Tensor, targets: Tensor, positions: Tensor | None = None) -> Tensor:
    """The mean of `token_losses` over the targets that are not -100, a scalar."""
    losses = token_losses(model, tokens, targets, positions)
    return losses.sum() / (targets != IGNORE_INDEX).sum().clamp(min=1)


def _losses(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model.unembed(hidden).float(), targets, ignore_index=IGNORE_INDEX, reduction="none")
