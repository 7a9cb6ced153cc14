"""What the machine is good at, asked once."""

from __future__ import annotations

from functools import cache

import torch


@cache
def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, which is when it is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
