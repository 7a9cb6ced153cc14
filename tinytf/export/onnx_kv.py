"""ONNX with past and present key-values: prefill, chunked prefill and decode in one graph of standard operators."""

from __future__ import annotations

from pathlib import Path

import torch

from tinytf.export.onnx_files import PAST, PRESENT, cache_names, open_cached, write_graph
from tinytf.export.onnx_files import refusal as refusal
from tinytf.export.packed import PackedTransformer
from tinytf.export.runner import Runner
from tinytf.export.subject import Subject
from tinytf.export.tracing import example

EXAMPLE_PAST = 5


def write(subject: Subject, path: Path, base: Path | None) -> None:
    """Export one graph that takes past keys and values, of any length, 0 included."""
    config = subject.model.config
    tokens = example()
    sizes = (len(tokens), config.kv_heads, EXAMPLE_PAST, config.head_dim)
    # Distinct tensors: the exporter merges inputs that share one object, and the graph is then wrong without a word.
    past = [torch.randn(sizes) for _ in range(2 * config.n_layers)]
    write_graph(
        subject,
        path,
        PackedTransformer(subject.model),
        (tokens, past),
        input_names=["tokens", *cache_names(PAST, config.n_layers)],
        output_names=["logits", *cache_names(PRESENT, config.n_layers)],
        dynamic_shapes={"tokens": {0: "batch", 1: "seq"}, "past": [{0: "batch", 2: "past_len"}] * len(past)},
    )


def open_runner(path: Path, threads: int) -> Runner:
    """The graph in onnxruntime, with its cache."""
    return open_cached(path, threads)
