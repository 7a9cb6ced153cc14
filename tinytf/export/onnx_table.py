"""The embedding of an ONNX graph in rows of 8 bits, which int8 and int4 share."""

from __future__ import annotations

from typing import Any

from tinytf.export.onnx_graph import Array, Graph

EMBEDDING = "embed_tokens.weight"
ROWS, SCALE = "embed_tokens.quantized", "embed_tokens.scale"


def round_embedding(graph: Graph, rows: Array, scale: Array) -> Any:
    """Look tokens up in 8-bit rows, each brought back by its own scale.

    Args:
        graph: its weight ``EMBEDDING`` was taken out.
        rows: of the table, ``[vocab_size, d_model]``.
        scale: of each row, ``[vocab_size, 1]``.

    Returns:
        The node that turns the table over for the head, and still names the weight that was taken. None where the
        head has a weight of its own: in small graphs the exporter turns it over itself.
    """
    graph.add(ROWS, rows)
    graph.add(SCALE, scale)
    readers = {node.op_type: node for node in graph.nodes() if EMBEDDING in node.input}
    _look_up(graph, readers.pop("Gather"))
    return readers.get("Transpose")


def _look_up(graph: Graph, node: Any) -> None:
    ids, out = node.input[1], node.output[0]
    graph.replace(
        node,
        ("Gather", [ROWS, ids], [f"{out}.row"], {}),
        ("Cast", [f"{out}.row"], [f"{out}.float"], {"to": graph.FLOAT}),
        ("Gather", [SCALE, ids], [f"{out}.scale"], {}),
        ("Mul", [f"{out}.float", f"{out}.scale"], [out], {}),
    )
