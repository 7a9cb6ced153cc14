"""ONNX in float32: the model without a cache, and with past and present key-values in one graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tinytf.export.formats import Writer
from tinytf.export.formats.onnx.cached_graph import (
    IDS,
    INPUTS,
    PADDING,
    PAST,
    PRESENT,
    cache_names,
    cached_runner,
    runtime_name,
)
from tinytf.export.formats.onnx.fused_projections import FusedTransformer
from tinytf.export.formats.onnx.graph import EMBEDDING, Graph, simplify_sizes
from tinytf.export.formats.onnx.runtime import METADATA, PROTOBUF_LIMIT, open_session, require_own_kind
from tinytf.export.parity.cases import example_tokens, too_short_to_trace
from tinytf.export.parity.runner import Runner, quiet, recomputing
from tinytf.model import TransformerConfig
from tinytf.weights.checkpoint import LoadedModel

# The oldest that every operator here needs, so that old runtimes load the file too. 23 would decode a tenth faster, 567
# tokens per second for 522 at 14 million parameters.
OPSET = 18

EXAMPLE_PAST = 5
"""Of the traced example: torch.export takes sizes of 0 and 1 for constants."""


class Exact(Writer):
    """What both graphs in float32 share: their table of embeddings is compared as it stands."""

    def validate_artifact(self, loaded: LoadedModel, text: str, path: Path) -> list[str]:
        import onnx

        require_own_kind(path)
        graph = Graph(onnx.load(str(path)))
        table = loaded.model.embed_tokens.weight.detach().numpy()
        same = graph.has(EMBEDDING) and np.array_equal(graph.weight(EMBEDDING), table)
        return [] if same else [f"weight {EMBEDDING} is not the model's"]


class Plain(Exact):
    """Ids ``[batch, seq]`` in, logits ``[batch, seq, vocab_size]`` out."""

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        return too_large(loaded.model.config) or too_short_to_trace(loaded.model.config)

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        limit = loaded.model.config.max_seq_len
        proto = exported_graph(
            loaded.model,
            (example_tokens(),),
            input_names=[IDS],
            output_names=["logits"],
            dynamic_shapes={"tokens": {0: "batch", 1: torch.export.Dim("seq", max=limit)}},
        )
        save(proto, path, loaded)

    def open_runner(self, path: Path, threads: int) -> Runner:
        session = open_session(path, threads)

        def forward(tokens: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(["logits"], {IDS: tokens.numpy()})[0])

        return Runner(runtime_name(), recomputing(forward), cached=False)


class WithCache(Exact):
    """Prefill, chunked prefill and decode in one graph of standard operators."""

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        return too_large(loaded.model.config)

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        config = loaded.model.config
        tokens = example_tokens()
        batch, new = tokens.shape
        mask, positions = torch.ones(batch, EXAMPLE_PAST + new, dtype=torch.long), torch.zeros_like(tokens)
        sizes = (batch, config.kv_heads, EXAMPLE_PAST, config.head_size)
        # Distinct tensors: the exporter merges inputs that share one object. onnx's checker is content with the graph,
        # a prefill is exact, and every decoding step is wrong, by up to 19.
        past = [torch.randn(sizes) for _ in range(2 * config.n_layers)]
        proto = exported_graph(
            FusedTransformer(loaded.model),
            (tokens, mask, positions, past),
            input_names=[*INPUTS, *cache_names(PAST, config.n_layers)],
            output_names=["logits", *cache_names(PRESENT, config.n_layers)],
            dynamic_shapes={
                "input_ids": {0: "batch", 1: "seq"},
                "attention_mask": {0: "batch", 1: "total_len"},
                "position_ids": {0: "batch", 1: "seq"},
                "past": [{0: "batch", 2: "past_len"}] * len(past),
            },
        )
        simplify_sizes(Graph(proto))
        save(proto, path, loaded)

    def open_runner(self, path: Path, threads: int) -> Runner:
        return cached_runner(open_session(path, threads), PADDING)


PLAIN = Plain()
WITH_CACHE = WithCache()


def too_large(config: TransformerConfig, extra: int = 0) -> str | None:
    """Why the model and ``extra`` values more do not fit into one ONNX file, or None."""
    size = 4 * (config.parameter_count + extra)
    if size < 0.95 * PROTOBUF_LIMIT:
        return None
    return f"its {size / 1e9:.1f} GB of float32 weights are past the 2 GB that one ONNX file holds"


def exported_graph(
    graph: nn.Module,
    example: tuple[Any, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Mapping[str, Any],
) -> Any:
    """The ONNX model that torch.export makes of a module."""
    with quiet():
        program = torch.onnx.export(
            graph.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dict(dynamic_shapes),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def save(proto: Any, path: Path, loaded: LoadedModel) -> None:
    """Write and check a graph: one file, with what generation needs in its metadata, without the exporter's notes."""
    import onnx

    # What no node reads any more: onnxruntime warns of each constant, in every program that loads the file.
    Graph(proto).remove_unread()
    # The notes are half of a small file, and hold paths of the machine that wrote it.
    del proto.graph.metadata_props[:]
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del part.metadata_props[:]
    del proto.graph.value_info[:]
    stated = {**asdict(loaded.model.config), "start_token": loaded.start_token}
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(stated)})
    onnx.save(proto, str(path))
    onnx.checker.check_model(str(path), full_check=True)
