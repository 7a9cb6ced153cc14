"""ONNX without a cache: tokens in, logits out."""

from __future__ import annotations

from pathlib import Path

import torch

from tinytf.export import onnx_files, tracing
from tinytf.export.onnx_files import open_session, runtime_name, write_graph
from tinytf.export.runner import Runner, recomputing
from tinytf.export.subject import Subject
from tinytf.export.tracing import example


def refusal(subject: Subject) -> str | None:
    """Why this format cannot be written here, None where it can."""
    return onnx_files.refusal(subject) or tracing.refusal(subject)


def write(subject: Subject, path: Path, base: Path | None) -> None:
    """Export the model as it is: ids ``[batch, seq]`` in, logits ``[batch, seq, vocab_size]`` out."""
    limit = subject.model.config.max_seq_len
    write_graph(
        subject,
        path,
        subject.model,
        (example(),),
        input_names=["tokens"],
        output_names=["logits"],
        dynamic_shapes={"tokens": {0: "batch", 1: torch.export.Dim("seq", max=limit)}},
    )


def open_runner(path: Path, threads: int) -> Runner:
    """The graph in onnxruntime, which reads the whole text again for each token."""
    session = open_session(path, threads)

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["logits"], {"tokens": tokens.numpy()})[0])

    return Runner(runtime_name(), recomputing(forward), cached=False)
