"""What `auto` means on this machine: decided once, before anything is built, and written into the config."""

from __future__ import annotations

import shutil
from typing import Literal

import torch

from tinytf.training.hardware import multiplies_bf16, onednn_multiplies_faster

Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true"]
MatmulPrecision = Literal["auto", "highest", "high", "medium"]

COMPILE_PAYS_AFTER = {"cpu": 4e13, "cuda": 1e16}
"""FLOPs of a run. On two cores of a Zen 5 it is some three minutes, of which compiled blocks save the half minute
that compiling them takes at most; that of GPUs is not measured."""


def compile_pays(run_flops: float, device: str) -> bool:
    """Whether compiling the blocks earns its own time back within the run."""
    if device == "cpu" and not shutil.which("g++"):
        return False
    return run_flops >= COMPILE_PAYS_AFTER.get(device, float("inf"))


def training_device(accelerator: str) -> str:
    """The kind of device that an ``--trainer.accelerator`` ends up on: ``cpu``, ``cuda`` or ``mps``."""
    if accelerator in ("cpu", "cuda", "mps"):
        return accelerator
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else "cpu"


def fastest_precision(device: str) -> Precision:
    """``bf16-mixed`` where the device multiplies bfloat16 in hardware, else ``32-true``."""
    return "bf16-mixed" if multiplies_bf16(torch.device(device)) else "32-true"


def fastest_matmul(precision: str, device: str) -> MatmulPrecision:
    """``medium`` where a CPU trains in float32 and oneDNN multiplies faster than MKL, as exactly; else ``highest``."""
    trains_in_float32 = device == "cpu" and precision == "32-true"
    return "medium" if trains_in_float32 and onednn_multiplies_faster() else "highest"
