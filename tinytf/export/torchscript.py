"""TorchScript, traced: runs where nothing but torch is. PyTorch is retiring it, pt2 takes its place."""

from __future__ import annotations

from pathlib import Path

import torch

from tinytf.export.quiet import quiet
from tinytf.export.runner import Runner, recomputing
from tinytf.export.subject import Subject
from tinytf.export.tracing import example
from tinytf.export.tracing import refusal as refusal


def write(subject: Subject, path: Path, base: Path | None) -> None:
    """Save the traced module."""
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            subject.model, example(), check_trace=False
        )
        torch.jit.save(traced, str(path))


def open_runner(path: Path, threads: int) -> Runner:
    """The module in PyTorch's TorchScript interpreter."""
    with quiet():
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = module(tokens)
        return logits

    return Runner(f"torch.jit {torch.__version__}", recomputing(forward), cached=False)
