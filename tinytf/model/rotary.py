"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-rotation layout of Llama and Qwen."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(max_seq_len: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles, each ``[max_seq_len, head_dim]`` in float32."""
    frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(max_seq_len, dtype=torch.float32), frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair ``(x[i], x[i + head_dim / 2])`` by its position's angle; x is ``[..., seq, head_dim]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
