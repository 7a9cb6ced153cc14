"""An ONNX graph that is rewritten node by node."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
Step = tuple[str, list[str], list[str], dict[str, Any]]
"""A node to be: operator, inputs, outputs, attributes."""


class Graph:
    """An ONNX graph that is rewritten in place."""

    FLOAT = 1
    """onnx.TensorProto.FLOAT."""

    def __init__(self, proto: Any) -> None:
        self.graph = proto.graph
        self._weights = {tensor.name: tensor for tensor in self.graph.initializer}

    def nodes(self) -> list[Any]:
        """As they are now: safe to rewrite while going over them."""
        return list(self.graph.node)

    def holds(self, name: str) -> bool:
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

    def add_once(self, name: str, value: Array) -> None:
        """A constant that several nodes read."""
        if not self.holds(name):
            self.add(name, value)

    def replace(self, node: Any, *steps: Step) -> None:
        """Put nodes, or none, in the place of one."""
        from onnx import helper

        at = list(self.graph.node).index(node)
        del self.graph.node[at]
        for offset, (op_type, inputs, outputs, attributes) in enumerate(steps):
            self.graph.node.insert(at + offset, helper.make_node(op_type, inputs, outputs, **attributes))
