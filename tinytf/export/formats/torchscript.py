"""TorchScript, traced: runs with torch alone, and in C++. PyTorch is retiring it in favor of pt2."""

from __future__ import annotations

from pathlib import Path

import torch

from tinytf.export.parity.cases import example_tokens, too_short_to_trace
from tinytf.export.parity.runner import Runner, quiet, recomputing
from tinytf.run.checkpoint import LoadedModel


def unsupported_reason(loaded: LoadedModel) -> str | None:
    """Why the model cannot be traced, or None."""
    return too_short_to_trace(loaded.model.config)


def write(loaded: LoadedModel, path: Path, base: Path | None) -> None:
    """Save the traced module."""
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            loaded.model, example_tokens(), check_trace=False
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
