"""onnx-kv in 8 bits with standard operators: every product per output channel, embedding and head in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinytf.export.onnx_files import check, load, open_cached, save
from tinytf.export.onnx_files import refusal as refusal
from tinytf.export.onnx_graph import Array, Graph
from tinytf.export.runner import Runner
from tinytf.export.subject import Subject

LARGEST = 63
"""Of a weight: 7 bits. Processors without VNNI add two products of 8 bits in 16 and saturate there without a word; with
63 for 127 every such sum fits. It is what onnxruntime's own quantizer calls ``reduce_range``."""

EMBEDDING = "embed_tokens.weight"


def write(subject: Subject, path: Path, base: Path | None) -> None:
    """Quantise the weights of the graph at ``base`` to 8 bits."""
    assert base is not None
    proto = load(base)
    quantize(Graph(proto))
    save(proto, path, subject.model.config)
    check(path)


def open_runner(path: Path, threads: int) -> Runner:
    """The graph in onnxruntime, with its cache."""
    return open_cached(path, threads)


def quantize(graph: Graph) -> None:
    """Rewrite every product with a weight, and the embedding, in place."""
    table, scale = per_row(graph.take(EMBEDDING))
    graph.add("embed_tokens.quantized", table)
    graph.add("embed_tokens.scale", scale)
    for node in graph.nodes():
        if node.op_type == "Gather" and node.input[0] == EMBEDDING:
            look_up(graph, node, "embed_tokens.quantized", "embed_tokens.scale")
        elif node.op_type == "Transpose" and node.input[0] == EMBEDDING:
            # The head. onnxruntime turns the table over once, as it loads; the file holds it once.
            node.input[0] = "embed_tokens.quantized"
            graph.add("head.scale", scale[:, 0])
        elif node.op_type == "MatMul":
            _multiply(graph, node)


def look_up(graph: Graph, node: Any, table: str, scale: str) -> None:
    """A Gather of 8-bit rows, each brought back by its own scale."""
    ids, out = node.input[1], node.output[0]
    graph.replace(
        node,
        ("Gather", [table, ids], [f"{out}.row"], {}),
        ("Cast", [f"{out}.row"], [f"{out}.float"], {"to": graph.FLOAT}),
        ("Gather", [scale, ids], [f"{out}.scale"], {}),
        ("Mul", [f"{out}.float", f"{out}.scale"], [out], {}),
    )


def _multiply(graph: Graph, node: Any) -> None:
    """x @ w as integers: x is quantized as it comes, w per output channel."""
    x, w = node.input
    out = node.output[0]
    if graph.holds(w):
        quantized, scale = per_row(graph.take(w).T)
        graph.add(f"{w}.quantized", np.ascontiguousarray(quantized.T))
        graph.add(f"{w}.scale", scale[:, 0])
        quantized_name, scale_name = f"{w}.quantized", f"{w}.scale"
    elif graph.made_by(w, "Transpose") == "embed_tokens.quantized":
        quantized_name, scale_name = w, "head.scale"
    else:
        return  # Scores and weighted values: both sides are activations, and stay in float32.
    graph.replace(
        node,
        ("DynamicQuantizeLinear", [x], [f"{out}.x", f"{out}.x_scale", f"{out}.x_zero"], {}),
        ("MatMulInteger", [f"{out}.x", quantized_name, f"{out}.x_zero"], [f"{out}.sum"], {}),
        ("Cast", [f"{out}.sum"], [f"{out}.sum_float"], {"to": graph.FLOAT}),
        ("Mul", [f"{out}.x_scale", scale_name], [f"{out}.scale"], {}),
        ("Mul", [f"{out}.sum_float", f"{out}.scale"], [out], {}),
    )


def per_row(weight: Array, largest: int = LARGEST) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers of at most ``largest``, and the scale of each row, ``[rows, 1]``."""
    scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / largest, 1e-12).astype(np.float32)
    return np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8), scale
