"""A rounded ONNX file taken apart again: are its weights the model's, and is its graph the model?

Thresholds on the logits alone pass a layer without one column of its values, which moves them no more than rounding
does. So the two are asked apart. Every rounded weight must be the model's to half a step; and the graph, with the
model's own weights in the place of the rounded ones, must be the model to what float32 allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinytf.export.onnx_files import load
from tinytf.export.onnx_graph import Array, Graph
from tinytf.export.onnx_table import EMBEDDING, HEAD, ROUNDED, SCALE, TABLE
from tinytf.export.packed import PackedTransformer
from tinytf.export.subject import Subject

BITS4, SCALES4 = "_Q4", "_scales"
"""What onnxruntime's quantizer adds to the name of a weight, for its blocks of 4 bits and for their scales."""

BLOCK = 32
SLACK = 1.001
"""For the rounding of the scales themselves."""

TINY = float(np.finfo(np.float32).tiny)
"""No scale is smaller."""


def weight_problems(subject: Subject, path: Path) -> list[str]:
    """Rounded weights of a file that are not the model's, and products with another's scales, each in words."""
    exact, graph = exact_weights(subject), Graph(load(path))
    found = []
    for rounded in _rounded(graph):
        name = rounded.name
        if name not in exact or rounded.values.shape != exact[name].shape:
            found.append(f"weight {name} is none that is written here; if an older tinytf wrote the file, export again")
        elif not rounded.is_near(exact[name]):
            found.append(f"weight {name} is further from the model's than rounding takes it")
    for node in graph.nodes():
        if node.op_type == "MatMulNBits" and node.input[2] != node.input[1].removesuffix(BITS4) + SCALES4:
            found.append(f"product with {node.input[1]} takes the scales {node.input[2]}")
    return found


@dataclass(frozen=True)
class Rounded:
    """A rounded weight as a file holds it, all arrays ``[in, out]``.

    Args:
        name: without what rounding adds to it.
        values: brought back by the scales.
        step: from one value to the next.
        clipped: the largest that the integers hold: what is rounded to it may be off by a whole step.
        block: how many rows share a scale.
        levels: how many of the largest permitted steps reach the block's largest value.
    """

    name: str
    values: Array
    step: Array
    clipped: Array
    block: int
    levels: float

    def is_near(self, exact: Array) -> bool:
        """Whether each value is the exact one to half a step, and no step longer than it has to be."""
        largest = np.abs(exact).reshape(-1, self.block, exact.shape[1]).max(axis=1)
        step = np.minimum(self.step, np.repeat(largest, self.block, axis=0) / self.levels * SLACK)
        allowed = step * np.where(self.clipped, 1, 0.5) * SLACK + TINY
        return bool((np.abs(self.values - exact) <= allowed).all())


def _rounded(graph: Graph) -> Iterator[Rounded]:
    for name in graph.names(ROUNDED):
        integers, scale = graph.weight(name + ROUNDED), graph.weight(name + SCALE)
        step = np.broadcast_to(scale, integers.shape)
        # Two neighbours share the range of 127.
        yield Rounded(name, integers * scale, step, np.zeros(integers.shape, bool), len(integers), 127 / 2)
    for name in graph.names(BITS4):
        pairs = graph.weight(name + BITS4)
        columns, blocks, _ = pairs.shape
        integers = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(columns, -1).T
        # Older releases of onnxruntime write them without the columns.
        scale = graph.weight(name + SCALES4).reshape(columns, blocks).T
        step = np.repeat(scale, BLOCK, axis=0)
        yield Rounded(name, (integers.astype(np.float32) - 8) * step, np.abs(step), integers == 15, BLOCK, 8)


def unrounded(subject: Subject, path: Path) -> bytes:
    """The file's graph as bytes, with the model's own weights where it holds rounded ones."""
    proto, exact = load(path), exact_weights(subject)
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
    for name in graph.names(ROUNDED):
        # The file's own scale brings it back, so that a scale which is read from the wrong place shows.
        graph.take(name + ROUNDED)
        graph.add(name + ROUNDED, exact[name] / graph.weight(name + SCALE))
    content: bytes = proto.SerializeToString()
    return content


def exact_weights(subject: Subject) -> dict[str, Array]:
    """The matrices of a graph with key-values by the names they have there, each ``[in, out]``."""
    packed = {name: weight.numpy() for name, weight in PackedTransformer(subject.model).state_dict().items()}
    table = np.ascontiguousarray(packed[EMBEDDING].T)
    return packed | {HEAD: table, TABLE: table}
