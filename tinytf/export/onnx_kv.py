"""ONNX with past and present key-values: prefill, chunked prefill and decode in one graph of standard operators."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tinytf.export.evaluation import EXPORT_SHAPE
from tinytf.export.onnx_files import open_cached, write_graph
from tinytf.export.onnx_files import refusal as refusal
from tinytf.export.runner import Runner
from tinytf.export.subject import Subject
from tinytf.model import KVCache, Transformer
from tinytf.model.transformer import causal_mask

EXAMPLE_PAST = 5


class CachedGraph(nn.Module):
    """The transformer as one function of new tokens and past key-values.

    Positions are looked up where the model slices, and the length is not checked: a comparison of sizes would become
    a condition on the graph's inputs. Who runs the graph checks it.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """``past`` and all results after the logits are key and value of layer 0, of layer 1, …"""
        model = self.model
        cache = KVCache(past[0::2], past[1::2])
        length = cache.length
        total = length + tokens.shape[1]
        position = torch.arange(total)[length:]
        cos, sin, mask = model.cos[position], model.sin[position], causal_mask(length, total, tokens.device)
        x = model.embed_tokens(tokens)
        for block in model.layers:
            x = block(x, cos, sin, mask, cache)
        present = [half for pair in zip(cache.keys, cache.values, strict=True) for half in pair]
        return (model.unembed(model.norm(x)), *present)


def cache_names(prefix: str, layers: int) -> list[str]:
    """Names of the key-value inputs or outputs, as transformers and onnxruntime-genai call them."""
    return [f"{prefix}.{layer}.{half}" for layer in range(layers) for half in ("key", "value")]


def write(subject: Subject, path: Path, base: Path | None) -> None:
    config = subject.model.config
    batch, seq = EXPORT_SHAPE
    # Distinct tensors: the exporter merges inputs that share one object, and the graph is then wrong without a word.
    past = [torch.randn(batch, config.kv_heads, EXAMPLE_PAST, config.head_dim) for _ in range(2 * config.n_layers)]
    write_graph(
        subject,
        path,
        CachedGraph(subject.model),
        (torch.zeros(batch, seq, dtype=torch.long), past),
        input_names=["tokens", *cache_names("past_key_values", config.n_layers)],
        output_names=["logits", *cache_names("present", config.n_layers)],
        dynamic_shapes={"tokens": {0: "batch", 1: "seq"}, "past": [{0: "batch", 2: "past_len"}] * len(past)},
    )


def open_runner(path: Path, threads: int) -> Runner:
    return open_cached(path, threads)
