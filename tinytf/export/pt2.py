"""A torch.export program: what takes TorchScript's place."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from tinytf.export.quiet import quiet
from tinytf.export.runner import Runner, recomputing
from tinytf.export.subject import Subject
from tinytf.export.tracing import example
from tinytf.export.tracing import refusal as refusal

MAX_BATCH = 4096


def program(subject: Subject) -> ExportedProgram:
    """The model as a graph of any batch and any length up to its context."""
    sizes = {0: Dim("batch", max=MAX_BATCH), 1: Dim("seq", max=subject.model.config.max_seq_len)}
    with quiet(), torch.no_grad():
        return torch.export.export(subject.model, (example(),), dynamic_shapes={"tokens": sizes})


def write(subject: Subject, path: Path, base: Path | None) -> None:
    """Save the program that ``torch.export`` traces."""
    with quiet():
        torch.export.save(program(subject), str(path))


def open_runner(path: Path, threads: int) -> Runner:
    """The program in PyTorch, without tinytf's code."""
    with quiet():
        module = torch.export.load(str(path)).module()

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = module(tokens)
        return logits

    return Runner(f"torch.export {torch.__version__}", recomputing(forward), cached=False)
