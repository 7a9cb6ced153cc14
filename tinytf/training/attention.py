"""How attention is computed where a CPU trains in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinytf.model import Transformer
from tinytf.model.transformer import Attention
from tinytf.training.hardware import multiplies_bf16

WHOLE_SCORES_UP_TO = 512
"""Tokens. Beyond, a batch's scores, ``[batch, n_heads, seq, seq]``, leave the caches, and memory with them."""


def whole_scores(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
    """`scaled_dot_product_attention` as two matrix products with a softmax between, the scores kept whole.

    The backward pass of torch's flash kernel for CPUs reaches a tenth of the speed of a matrix product in bfloat16:
    21 ms, forward and backward, where this takes 6 (64 heads of 128 tokens by 64, one core of a Zen 5). In float32
    the kernel is the faster one.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, **kwargs)


def choose_attention(model: Transformer, device: torch.device, precision: str, seq_len: int) -> None:
    """Swap in the form of attention that trains fastest here; the weights, and what the model is, stay.

    Args:
        precision: Lightning's name of it.
        seq_len: tokens in a training window.
    """
    bf16_on_cpu = device.type == "cpu" and precision.startswith("bf16") and multiplies_bf16(device)
    if not bf16_on_cpu or seq_len > WHOLE_SCORES_UP_TO:
        return
    # In spite of its name it is the CPU's switch too; without it the products would be taken in float32.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = whole_scores
