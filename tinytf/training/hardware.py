"""What the machine is good at, asked once."""

from __future__ import annotations

import time
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


@cache
def onednn_multiplies_faster() -> bool:
    """Whether float32 products are faster on this CPU under torch's matmul precision "medium", and no less exact.

    It sends them from MKL to oneDNN, which on processors that MKL was not made for is up to twice as fast. By its
    name it may round to bfloat16, so the error is measured too. It takes some 50 ms.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    error, seconds = {}, {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        error[precision] = (a @ b - exact).abs().max().item()
        seconds[precision] = min(_timed_product(a, b) for _ in range(10))
    torch.set_float32_matmul_precision(before)
    return error["medium"] < 4 * error["highest"] and seconds["medium"] < 0.8 * seconds["highest"]


def _timed_product(a: torch.Tensor, b: torch.Tensor) -> float:
    began = time.perf_counter()
    a @ b
    return time.perf_counter() - began
