"""A torch.export program. Opening one can run code: torch unpickles parts of it without limits, so `verify` asks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import Dim

from tinytf.export.parity.cases import example_tokens, too_short_to_trace
from tinytf.export.parity.runner import Runner, quiet, recomputing
from tinytf.run.checkpoint import LoadedModel

MAX_BATCH = 4096


def unsupported_reason(loaded: LoadedModel) -> str | None:
    """Why the model cannot be traced, or None."""
    return too_short_to_trace(loaded.model.config)


def write(loaded: LoadedModel, path: Path, base: Path | None) -> None:
    """Save the program that ``torch.export`` traces, for any batch and any length up to the context."""
    sizes = {0: Dim("batch", max=MAX_BATCH), 1: Dim("seq", max=loaded.model.config.max_seq_len)}
    with quiet(), torch.no_grad():
        program = torch.export.export(loaded.model, (example_tokens(),), dynamic_shapes={"tokens": sizes})
        torch.export.save(program, str(path))


def open_runner(path: Path, threads: int) -> Runner:
    """The program in PyTorch, without tinytf's code."""
    with quiet():
        module = torch.export.load(str(path)).module()

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = module(tokens)
        return logits

    return Runner(f"torch.export {torch.__version__}", recomputing(forward), cached=False)
