"""An ONNX graph that is rewritten node by node; its embedding and head prepared for quantization."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FLOAT = 1
"""onnx.TensorProto.FLOAT."""

Array = npt.NDArray[Any]
Step = tuple[str, list[str], list[str], dict[str, Any]]
"""A new node: operator, inputs, outputs, attributes."""

EMBEDDING, HEAD, TABLE = "embed_tokens.weight", "head", "embed_tokens"
QUANTIZED, SCALE = ".quantized", ".scale"
"""What is added to the name of a weight, for its 8-bit integers and for the scale of each column."""


class Graph:
    """An ONNX graph that is rewritten in place."""

    def __init__(self, proto: Any) -> None:
        self.graph = proto.graph
        self._weights = {tensor.name: tensor for tensor in self.graph.initializer}

    def nodes(self) -> list[Any]:
        """As they are now: safe to rewrite while going over them."""
        return list(self.graph.node)

    def has(self, name: str) -> bool:
        """Whether there is a weight of this name."""
        return name in self._weights

    def names(self, ending: str) -> list[str]:
        """Of the weights whose names end so, without the ending."""
        return [name.removesuffix(ending) for name in self._weights if name.endswith(ending)]

    def weight(self, name: str) -> Array:
        """A weight, left where it is."""
        from onnx import numpy_helper

        weight: Array = numpy_helper.to_array(self._weights[name])
        return weight

    def take(self, name: str) -> Array:
        """A weight, taken out of the graph."""
        weight = self.weight(name)
        self.graph.initializer.remove(self._weights.pop(name))
        return weight

    def add(self, name: str, weight: Array) -> None:
        """Put in a weight."""
        from onnx import numpy_helper

        self._weights[name] = numpy_helper.from_array(weight, name)
        self.graph.initializer.append(self._weights[name])

    def replace(self, node: Any, *steps: Step) -> None:
        """Put nodes, or none, in the place of one."""
        from onnx import helper

        at = list(self.graph.node).index(node)
        del self.graph.node[at]
        for offset, (op_type, inputs, outputs, attributes) in enumerate(steps):
            self.graph.node.insert(at + offset, helper.make_node(op_type, inputs, outputs, **attributes))


def untie(graph: Graph, tied: bool) -> Array:
    """Make the head a product with a weight of its own, ``HEAD``: what quantizers and old runtimes look for.

    Args:
        graph: the model with key-values.
        tied: whether the head's weight is the embedding's.

    Returns:
        The embedding's weight, ``[d_model, vocab_size]``, which is taken out: see `read_embedding_from`.
    """
    table = np.ascontiguousarray(graph.take(EMBEDDING).T)
    product = next(node for node in graph.nodes() if "logits" in node.output)
    transpose = next((node for node in graph.nodes() if product.input[1] in node.output), None)
    if transpose is None:  # In small graphs the exporter transposes the weight itself.
        own = graph.take(product.input[1])
    else:
        own = table if tied else np.ascontiguousarray(graph.take(transpose.input[0]).T)
        graph.replace(transpose)
    product.input[1] = HEAD
    graph.add(HEAD, table if tied else own)
    return table


def read_embedding_from(graph: Graph, table: str) -> None:
    """Read a token's embedding from a table of integers, each of whose columns has its own scale.

    Args:
        graph: after `untie`.
        table: name of the quantized weight ``[d_model, vocab_size]``. A tied one can be the head's: it is stored once.
    """
    node = next(node for node in graph.nodes() if EMBEDDING in node.input)
    ids, out = node.input[1], node.output[0]
    graph.replace(
        node,
        ("Gather", [table + QUANTIZED, ids], [f"{out}.column"], {"axis": 1}),
        ("Cast", [f"{out}.column"], [f"{out}.float"], {"to": FLOAT}),
        ("Gather", [table + SCALE, ids], [f"{out}.scale"], {}),
        ("Mul", [f"{out}.float", f"{out}.scale"], [f"{out}.scaled"], {}),
        ("Transpose", [f"{out}.scaled"], [out], {"perm": [1, 2, 0]}),
    )
