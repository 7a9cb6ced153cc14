"""What `auto` means on this machine: decided once, before anything is built, and written into the config."""

from __future__ import annotations

import shutil

import torch

COMPILE_PAYS_AFTER = {"cuda": 1000, "cpu": 10**9}
"""Optimizer steps."""


def compile_pays(max_steps: int, device: str) -> bool:
    """Whether compiling the blocks earns its own time back within the run."""
    if device == "cpu" and not shutil.which("g++"):
        return False
    return max_steps >= COMPILE_PAYS_AFTER.get(device, 10**9)


def training_device(accelerator: str) -> str:
    """The kind of device that an ``--trainer.accelerator`` ends up on: ``cpu``, ``cuda`` or ``mps``."""
    if accelerator in ("cpu", "cuda", "mps"):
        return accelerator
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else "cpu"
