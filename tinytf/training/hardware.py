"""What this machine is good at, and what `auto` means on it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from functools import cache
from typing import Literal

import torch

from tinytf.utils.machine import cpu_vendor

Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true"]
MatmulPrecision = Literal["auto", "highest", "high", "medium"]

COMPILE_PAYS_AFTER = {"cpu": 4e13, "cuda": 1e16}
"""FLOPs of a run. On two cores of a Zen 5 it is some three minutes, of which compiled blocks save the half minute
that compiling them takes at most. On an H200 with 16 cores, compiling took 10 s and saved a third of the time at
GPT-2's size (206,000 and 305,000 tokens/s): it paid after 5e15."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from glibc's malloc.h: how much may lie unused at the end of the heap, and from which size on
a block comes from the system by itself."""

LARGEST_THRESHOLD = 2**31 - 1
"""Of what mallopt takes. A block of 2 GB and more goes back to the system as before."""

TUNING_ENV_VARS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")
"""By which a user tunes glibc: if one is set, it is left alone."""


def training_device(accelerator: str) -> str:
    """The kind of device that an ``--trainer.accelerator`` ends up on: ``cpu``, ``cuda`` or ``mps``."""
    if accelerator in ("cpu", "cuda", "mps"):
        return accelerator
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else "cpu"


@cache
def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, which is when it is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def fastest_precision(device: str) -> Precision:
    """``bf16-mixed`` if the device multiplies bfloat16 in hardware, else ``32-true``."""
    return "bf16-mixed" if has_native_bf16(torch.device(device)) else "32-true"


def fastest_matmul(precision: str, device: str) -> MatmulPrecision:
    """``medium`` if a CPU trains in float32 and oneDNN multiplies faster than MKL, as exactly; else ``highest``."""
    # Not TF32 on CUDA: there `auto` trains in bf16-mixed, and who asks for 32-true asks for float32's 24 bits.
    trains_in_float32 = device == "cpu" and precision == "32-true"
    return "medium" if trains_in_float32 and onednn_matmul_is_faster() else "highest"


@cache
def onednn_matmul_is_faster() -> bool:
    """Whether torch's matmul precision "medium" is faster in float32 on this CPU, and no less exact.

    It sends products from MKL to oneDNN. MKL keeps its fastest kernels for Intel's own processors: on an AMD Zen 5 it
    reached 100 GFLOP/s per core where oneDNN reached 235. Decided by the maker of the processor, not by a stopwatch,
    so that one config trains the same way each time on one machine. By its name, "medium" may round to bfloat16,
    so the error of a product is looked at too.
    """
    if cpu_vendor() != "AuthenticAMD":
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact, before, error = a.double() @ b.double(), torch.get_float32_matmul_precision(), {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        error[precision] = (a @ b - exact).abs().max().item()
    torch.set_float32_matmul_precision(before)
    return error["medium"] < 4 * error["highest"]


def compile_pays(run_flops: float, device: str) -> bool:
    """Whether compiling the blocks earns its own time back within the run."""
    if device == "cpu" and not shutil.which("g++"):
        return False
    return run_flops >= COMPILE_PAYS_AFTER.get(device, float("inf"))


def tune_glibc_malloc() -> bool:
    """Keep freed memory until the process ends; returns whether the allocator is glibc's and was not yet tuned.

    glibc gives large blocks back to the system as they are freed, and the system clears every page before it hands it
    out again. With 12 layers of 768 and 50,000 tokens that is 6 GB in each step, two fifths of its time on two CPU
    cores. The peak grows by what lies between the blocks, some 5 to 20 %.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in TUNING_ENV_VARS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST_THRESHOLD))
