"""onnx-kv in 8 bits with standard operators: every product per output channel, the embedding read from the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinytf.export.onnx_files import cached_runner, check, load, open_cached, open_session, save
from tinytf.export.onnx_files import refusal as refusal
from tinytf.export.onnx_graph import Array, Graph, Step
from tinytf.export.onnx_reading import unrounded, weight_problems
from tinytf.export.onnx_table import HEAD, ROUNDED, SCALE, look_up, untie
from tinytf.export.runner import Runner
from tinytf.export.subject import Subject

LARGEST = 127
"""Of a weight, and of the sum of two neighbours on an input: processors without VNNI add the products of two
neighbours with activations of up to 255 in 16 bits, and saturate there without a word."""

UNEVEN = (".o", ".down")
"""Products whose inputs no norm has made alike from token to token."""

TINY = 1e-30
"""Stands in for the largest value of a token whose values are all 0."""


def write(subject: Subject, path: Path, base: Path | None) -> None:
    """Quantise the weights of the graph at ``base`` to 8 bits."""
    assert base is not None
    proto = load(base)
    quantize(Graph(proto))
    save(proto, path, subject.model.config)
    check(path)


def problems(subject: Subject, text: str, path: Path) -> list[str]:
    """Which of its weights are not the model's."""
    return weight_problems(subject, path)


def open_unrounded(subject: Subject, path: Path, threads: int) -> Runner:
    """The graph with the model's own weights."""
    return cached_runner(open_session(unrounded(subject, path), threads))


def open_runner(path: Path, threads: int) -> Runner:
    """The graph in onnxruntime, with its cache."""
    return open_cached(path, threads)


def quantize(graph: Graph) -> None:
    """Rewrite every product with a weight, and the embedding, in place."""
    untie(graph)
    round_products(graph)
    look_up(graph, HEAD)


def round_products(graph: Graph) -> None:
    """Rewrite each product with a weight, in place."""
    for node in graph.nodes():
        if node.op_type == "MatMul":
            _round_product(graph, node)


def _round_product(graph: Graph, node: Any) -> None:
    x, w = node.input
    if not graph.holds(w):
        return  # Scores and weighted values: both sides are activations, and stay in float32.
    add_rounded(graph, w, graph.take(w))
    multiply = _multiply_by_token if w.endswith(UNEVEN) else _multiply
    graph.replace(node, *multiply(graph, x, w + ROUNDED, w + SCALE, node.output[0]))


def _multiply(graph: Graph, x: str, w: str, scale: str, out: str) -> list[Step]:
    """x @ w as integers: x is rounded as it comes, in steps that fit its smallest and largest value."""
    return [
        ("DynamicQuantizeLinear", [x], [f"{out}.x", f"{out}.x_scale", f"{out}.x_zero"], {}),
        ("MatMulInteger", [f"{out}.x", w, f"{out}.x_zero"], [f"{out}.sum"], {}),
        ("Cast", [f"{out}.sum"], [f"{out}.sum_float"], {"to": graph.FLOAT}),
        ("Mul", [f"{out}.x_scale", scale], [f"{out}.scale"], {}),
        ("Mul", [f"{out}.sum_float", f"{out}.scale"], [out], {}),
    ]


def _multiply_by_token(graph: Graph, x: str, w: str, scale: str, out: str) -> list[Step]:
    """The same with every token brought to the range of -1 to 1 first.

    What comes out of attention or of the gate is many times larger for some tokens than for others: in steps that fit
    the largest, the others keep few of their 8 bits. For the down projection that was nine tenths of a small model's
    divergence, for the output projection a quarter of that of 54 million parameters.
    """
    graph.add_once("last_axis", np.array([-1]))
    graph.add_once("tiny", np.array(TINY, np.float32))
    return [
        ("Abs", [x], [f"{out}.size"], {}),
        ("ReduceMax", [f"{out}.size", "last_axis"], [f"{out}.largest"], {"keepdims": 1}),
        ("Add", [f"{out}.largest", "tiny"], [f"{out}.range"], {}),
        ("Div", [x, f"{out}.range"], [f"{out}.even"], {}),
        *_multiply(graph, f"{out}.even", w, scale, f"{out}.product"),
        ("Mul", [f"{out}.product", f"{out}.range"], [out], {}),
    ]


def add_rounded(graph: Graph, name: str, weight: Array) -> None:
    """Put in a weight ``[in, out]`` as integers and the scale of each column."""
    rounded, scale = per_column(weight)
    graph.add(name + ROUNDED, rounded)
    graph.add(name + SCALE, scale)


def per_column(weight: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers of which two neighbours (rows 0 and 1, 2 and 3, …) keep to `LARGEST`, and each column's scale."""
    pairs = np.add.reduceat(weight, np.arange(0, len(weight), 2), axis=0)
    largest = np.maximum(np.abs(weight).max(axis=0), np.abs(pairs).max(axis=0))
    scale = np.maximum(largest / LARGEST, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(weight / scale), -LARGEST, LARGEST).astype(np.int8), scale
