"""Take a quantized ONNX file apart again: are its weights the model's, and is its graph the model?

Thresholds on the logits alone pass a layer without one column of its values, which moves them no more than
quantization does. So the two are checked apart. Every quantized weight must be the model's to half a step; and the
graph, with the model's own weights in place of the quantized ones, must be the model to what float32 allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinytf.export.formats.onnx.fused_projections import FusedTransformer
from tinytf.export.formats.onnx.graph import EMBEDDING, HEAD, QUANTIZED, SCALE, TABLE, Array, Graph
from tinytf.run.checkpoint import LoadedModel

BITS4, SCALES4 = "_Q4", "_scales"
"""What onnxruntime's quantizer adds to the name of a weight, for its blocks of 4 bits and for their scales."""

BLOCK = 32
SLACK = 1.001
"""The scales are float32 themselves."""

TINY = float(np.finfo(np.float32).tiny)
"""No scale is smaller."""


@dataclass(frozen=True)
class Int8Weight:
    """A weight ``[in, out]`` as integers q and one scale per column.

    It is near the exact w if ``|q * scale - w| <= step / 2``, with
    ``step = min(scale, max over the column of |w| * 2 / 127)``: two neighboring rows share the range of 127, so the
    scale may be up to twice ``max|w| / 127``; what the file states beyond that does not widen the step.
    """

    name: str
    integers: Array
    scale: Array

    @property
    def values(self) -> Array:
        """Dequantized, ``[in, out]``."""
        return self.integers * self.scale

    def is_near(self, exact: Array) -> bool:
        """Whether the inequality holds for every value."""
        step = np.minimum(self.scale, np.abs(exact).max(axis=0) / (127 / 2) * SLACK)
        return bool((np.abs(self.values - exact) <= step * 0.5 * SLACK + TINY).all())


@dataclass(frozen=True)
class Int4Weight:
    """A weight ``[in, out]`` as integers q of 0 to 15 and one scale per 32 rows of a column.

    It is near the exact w if ``|(q - 8) * scale - w| <= step / 2``, with
    ``step = min(|scale|, max over the block of |w| / 8)``: the largest value of a block is 8 steps from 0. That is one
    more than q - 8 reaches on its positive side, so a value at q = 15 may be off by a whole step.
    """

    name: str
    integers: Array
    scale: Array

    @property
    def values(self) -> Array:
        """Dequantized, ``[in, out]``."""
        return (self.integers.astype(np.float32) - 8) * np.repeat(self.scale, BLOCK, axis=0)

    def is_near(self, exact: Array) -> bool:
        """Whether the inequality holds for every value."""
        largest = np.abs(exact).reshape(-1, BLOCK, exact.shape[1]).max(axis=1)
        step = np.repeat(np.minimum(np.abs(self.scale), largest / 8 * SLACK), BLOCK, axis=0)
        allowed = step * np.where(self.integers == 15, 1, 0.5) * SLACK + TINY
        return bool((np.abs(self.values - exact) <= allowed).all())


def quantized_weights(graph: Graph) -> Iterator[Int8Weight | Int4Weight]:
    """Every quantized weight of a graph."""
    for name in graph.names(QUANTIZED):
        yield Int8Weight(name, graph.weight(name + QUANTIZED), graph.weight(name + SCALE))
    for name in graph.names(BITS4):
        pairs = graph.weight(name + BITS4)
        columns, blocks, _ = pairs.shape
        integers = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(columns, -1).T
        # Older releases of onnxruntime write the scales without the columns.
        yield Int4Weight(name, integers, graph.weight(name + SCALES4).reshape(columns, blocks).T)


def weight_problems(loaded: LoadedModel, path: Path) -> list[str]:
    """Quantized weights of a file that are not the model's, and products with another's scales, each in words."""
    import onnx

    exact, graph = exact_weights(loaded), Graph(onnx.load(str(path)))
    problems = []
    for weight in quantized_weights(graph):
        name = weight.name
        if name not in exact or weight.integers.shape != exact[name].shape:
            problems.append(f"weight {name} is not one that this tinytf writes; export again")
        elif not weight.is_near(exact[name]):
            problems.append(f"weight {name} is further from the model's than quantization takes it")
    for node in graph.nodes():
        if node.op_type == "MatMulNBits" and node.input[2] != node.input[1].removesuffix(BITS4) + SCALES4:
            problems.append(f"product with {node.input[1]} takes the scales {node.input[2]}")
    return problems


def dequantized(loaded: LoadedModel, path: Path) -> bytes:
    """The file's graph as bytes, with the model's own weights in place of quantized ones."""
    import onnx

    proto, exact = onnx.load(str(path)), exact_weights(loaded)
    graph = Graph(proto)
    for node in graph.nodes():
        if node.op_type == "DynamicQuantizeLinear":
            graph.add(node.output[1], np.array(1.0, np.float32))
            graph.replace(node, ("Identity", list(node.input), [node.output[0]], {}))
        elif node.op_type == "MatMulInteger":
            graph.replace(node, ("MatMul", list(node.input[:2]), list(node.output), {}))
        elif node.op_type == "MatMulNBits":
            name = node.input[1].removesuffix(BITS4)
            graph.add(name, exact[name])
            graph.replace(node, ("MatMul", [node.input[0], name], list(node.output), {}))
    for name in graph.names(QUANTIZED):
        # The file's own scale brings it back, so that a scale which is read from the wrong place shows.
        graph.take(name + QUANTIZED)
        graph.add(name + QUANTIZED, exact[name] / graph.weight(name + SCALE))
    content: bytes = proto.SerializeToString()
    return content


def exact_weights(loaded: LoadedModel) -> dict[str, Array]:
    """The matrices of a graph with key-values by the names they have there, each ``[in, out]``."""
    weights = {name: weight.numpy() for name, weight in FusedTransformer(loaded.model).state_dict().items()}
    table = np.ascontiguousarray(weights[EMBEDDING].T)
    return weights | {HEAD: table, TABLE: table}
