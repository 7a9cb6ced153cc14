"""A rounded ONNX file taken apart again: are its weights the model's, and is its graph the model?

Thresholds on the logits alone pass a layer without one column of its values, which moves them no more than rounding
does. So the two are asked apart. Every rounded weight must be the model's to half a step; and the graph, with the
model's own weights in the place of the rounded ones, must be the model to what float32 allows.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def weight_problems(subject: Subject, path: Path) -> list[str]:
    """Rounded weights of a file that are not the model's, each in words."""
    exact, graph = exact_weights(subject), Graph(load(path))
    found = []
    for name, back, blocks in _brought_back(graph):
        if name not in exact or back.shape != exact[name].shape:
            found.append(f"weight {name} is none of the model's")
        elif not _is_near(back, exact[name], blocks):
            found.append(f"weight {name} is further from the model's than rounding takes it")
    return found


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


def _brought_back(graph: Graph) -> Iterator[tuple[str, Array, int]]:
    """Name, values ``[in, out]`` and number of blocks of each column, of every rounded weight."""
    for name in graph.names(ROUNDED):
        yield name, graph.weight(name + ROUNDED) * graph.weight(name + SCALE), 1
    for name in graph.names(BITS4):
        pairs, scales = graph.weight(name + BITS4), graph.weight(name + SCALES4)
        whole = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(*scales.shape, BLOCK).astype(np.float32) - 8
        yield name, (whole * scales[..., None]).reshape(len(scales), -1).T, scales.shape[1]


def _is_near(back: Array, exact: Array, blocks: int) -> bool:
    """Whether no value is off by more than half a step.

    With 8 bits a step is up to two 127th of a column's largest value, where two neighbours share the range; with 4 it
    is an eighth of a block's, and a value as large as the largest, of the other sign, is off by the whole of it.
    """
    off, size = (np.abs(array).reshape(blocks, -1, array.shape[1]).max(axis=1) for array in (back - exact, exact))
    return bool((off <= SLACK * size / (127 if blocks == 1 else 8)).all())
