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

    def remove_unread(self) -> None:
        """Take out the nodes whose outputs nothing reads, and the weights that nothing reads."""
        read = {output.name for output in self.graph.output}
        for node in reversed(self.nodes()):
            if read.isdisjoint(node.output):
                self.graph.node.remove(node)
            else:
                read.update(node.input)
        for name in self._weights.keys() - read:
            self.take(name)


def simplify_sizes(graph: Graph) -> None:
    """Take sizes from fewer inputs of the graph, in fewer operations, than the exporter does.

    It asks whichever input it likes for the batch size, and transformers.js begins with key-values of batch size 0.
    """
    made = {name: node for node in graph.nodes() for name in node.output}
    for node in graph.nodes():
        if node.op_type != "Reshape":
            continue
        value, shape = (made.get(name) for name in node.input)
        if shape is not None and shape.op_type == "Concat":
            graph.replace(node, ("Reshape", [node.input[0], _copied(graph, shape)], list(node.output), {}))
        elif value is not None and value.op_type == "Sub" and all(made[x].op_type == "Squeeze" for x in value.input):
            # A difference of two sizes: made scalars for it, and a vector again after it.
            graph.replace(node, ("Sub", [made[name].input[0] for name in value.input], list(node.output), {}))
    graph.remove_unread()


def _copied(graph: Graph, shape: Any) -> str:
    """The name of a constant shape in place of one that is computed, whose dynamic sizes are the reshaped tensor's."""
    sizes = [int(graph.weight(part)[0]) if graph.has(part) else None for part in shape.input]
    # 0 copies the size at the same place: batch and sequence, which come first. Where heads are split or joined, the
    # sequence stands later, and is what is left: -1.
    leading = next((place for place, size in enumerate(sizes) if size is not None), len(sizes))
    values = [size if size is not None else 0 if place < leading else -1 for place, size in enumerate(sizes)]
    name = f"shape.{'_'.join(map(str, values))}"
    if not graph.has(name):
        graph.add(name, np.array(values, np.int64))
    return name


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
