"""Embedding and head of an ONNX graph, for int8 and int4."""

from __future__ import annotations

import numpy as np

from tinytf.export.onnx_graph import Array, Graph

EMBEDDING, HEAD, TABLE = "embed_tokens.weight", "head", "embed_tokens"
ROUNDED, SCALE = ".quantized", ".scale"
"""What is added to the name of a weight, for its 8-bit integers and for the scale of each column."""


def untie(graph: Graph) -> Array:
    """Make the head a product with a weight of its own, ``HEAD``: what quantizers and old runtimes look for.

    Returns:
        The head's weight, ``[d_model, vocab_size]``. The embedding's is taken out: `look_up` takes its place.
    """
    weight = np.ascontiguousarray(graph.take(EMBEDDING).T)
    product = next(node for node in graph.nodes() if "logits" in node.output)
    turned = next((node for node in graph.nodes() if product.input[1] in node.output), None)
    if turned is not None:
        graph.replace(turned)
    else:  # In small graphs the exporter turns the table over itself.
        graph.take(product.input[1])
    product.input[1] = HEAD
    graph.add(HEAD, weight)
    return weight


def look_up(graph: Graph, table: str) -> None:
    """Read the embedding of a token from the integers of a table, each of whose columns has its own scale.

    Args:
        graph: after `untie`.
        table: name of the rounded weight ``[d_model, vocab_size]``, which can be the head's: the file holds it once.
    """
    node = next(node for node in graph.nodes() if EMBEDDING in node.input)
    ids, out = node.input[1], node.output[0]
    graph.replace(
        node,
        ("Gather", [table + ROUNDED, ids], [f"{out}.column"], {"axis": 1}),
        ("Cast", [f"{out}.column"], [f"{out}.float"], {"to": graph.FLOAT}),
        ("Gather", [table + SCALE, ids], [f"{out}.scale"], {}),
        ("Mul", [f"{out}.float", f"{out}.scale"], [f"{out}.scaled"], {}),
        ("Transpose", [f"{out}.scaled"], [out], {"perm": [1, 2, 0]}),
    )
