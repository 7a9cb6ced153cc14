"""Next-token cross-entropy, without ever holding all logits of a large vocabulary in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tinytf.model import Transformer

IGNORE = -100
"""Target of a position that is padding."""

LOGITS_AT_ONCE = 2**25
"""Logits in one chunk: 128 MiB of float32."""


def token_losses(model: Transformer, tokens: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target in nats, 0 where it is padding; all ``[batch, seq]``."""
    hidden = model.hidden(tokens).flatten(0, 1)
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if len(hidden) <= rows:
        return _losses(model, hidden, targets.flatten()).view_as(targets)
    # Each chunk's logits are made again in the backward pass: a third more work in the head, none of its memory.
    chunks = [
        checkpoint(_losses, model, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.flatten().split(rows), strict=True)  # type: ignore[no-untyped-call]
    ]
    return torch.cat(chunks).view_as(targets)


def _losses(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model.unembed(hidden).float(), targets, ignore_index=IGNORE, reduction="none")
