"""The forms of attention and unembedding that training swaps in where its hardware runs them faster."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinytf.model import Transformer
from tinytf.model.transformer import Attention
from tinytf.training.hardware import has_native_bf16

MATH_UP_TO = 512
"""Tokens. Beyond, a batch's scores, ``[batch, n_heads, seq, seq]``, leave the caches, and memory with them."""


def cpu_bf16_sdpa(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
    """`scaled_dot_product_attention` by torch's math backend up to `MATH_UP_TO` tokens, by its flash kernel beyond.

    The backward pass of torch's flash kernel for CPUs reaches a tenth of the speed of a matrix product in bfloat16:
    21 ms, forward and backward, where two products with a softmax between take 6 (64 heads of 128 tokens by 64, one
    core of a Zen 5). In float32 the flash kernel is the faster one.
    """
    if q.shape[-2] > MATH_UP_TO:
        return F.scaled_dot_product_attention(q, k, v, **kwargs)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, **kwargs)


ALIGNED = 64
"""Columns of a matrix that CUDA's fastest products of bfloat16 want a multiple of."""


def aligned_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` with the weights' rows padded to a multiple of `ALIGNED`, and the padding cut off again.

    Logits of an odd vocabulary, such as GPT-2's 50,257 tokens, are rows that begin at no multiple of 16 bytes.
    """
    if torch.is_autocast_enabled(x.device.type):
        weight = weight.to(torch.get_autocast_dtype(x.device.type))  # Before the copy: half as many bytes.
    return F.linear(x, F.pad(weight, (0, 0, 0, -len(weight) % ALIGNED)))[..., : len(weight)]


def choose_unembedding(model: Transformer, device: torch.device) -> None:
    """Swap in the unembedding that is fastest here."""
    if device.type == "cuda" and model.config.vocab_size % ALIGNED:
        model.project = aligned_linear


def choose_attention(model: Transformer, device: torch.device, precision: str) -> None:
    """Swap in the form of attention that trains fastest here; weights and function stay.

    Args:
        precision: Lightning's name of it.
    """
    if device.type != "cpu" or not precision.startswith("bf16") or not has_native_bf16(device):
        return
    # In spite of its name it is the CPU's switch too; without it the products would be taken in float32.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = cpu_bf16_sdpa
