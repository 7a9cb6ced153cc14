"""How a fresh transformer's weights are drawn, in one place, with the reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from tinytf.model.transformer import Transformer

EMBEDDING_STD = 0.2
"""Ten times GPT-2's: the blocks' first updates are then small beside the token they are added to."""


@torch.no_grad()
def initialize(model: Transformer) -> None:
    """Draw all weights afresh from torch's global generator.

    - Matrices are uniform with standard deviation ``1 / sqrt(fan_in)``: the variance of what comes in goes out.
    - The matrices that write to the residual stream (``o_proj``, ``down_proj``) are zero: each block starts as
      the identity, so depth does not change the scale of the stream (Zhang et al. 2019, arXiv:1901.09321).
    - The final norm's weight starts at ``1 / (std * d_model)``. With tied embeddings a token's own logit starts
      as ``std * d_model`` (51 at 256 wide): the model would insist on repeating its input. Scaled so,
      that logit is 1, the others near 0, and the first loss near ln(vocab_size).
    """
    d_model = model.config.d_model
    for module in model.modules():
        if isinstance(module, nn.Linear):
            bound = (3.0 / module.in_features) ** 0.5
            nn.init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)
    nn.init.normal_(model.embed_tokens.weight, std=EMBEDDING_STD)
    nn.init.constant_(model.norm.weight, 1.0 / (EMBEDDING_STD * d_model))
