"""onnx-kv with quantized weights: 8 bits with standard operators, or 4 bits with onnxruntime's MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinytf.export.formats.onnx import save, too_large
from tinytf.export.formats.onnx.graph import (
    FLOAT,
    HEAD,
    QUANTIZED,
    SCALE,
    TABLE,
    Array,
    Graph,
    Step,
    read_embedding_from,
    untie,
)
from tinytf.export.formats.onnx.runtime import cached_runner, open_session
from tinytf.export.formats.onnx.weight_check import BLOCK, dequantized, weight_problems
from tinytf.export.parity.runner import Runner, quiet
from tinytf.run.checkpoint import LoadedModel

LARGEST = 127
"""Of a weight, and of the sum of two neighbors on an input: processors without VNNI add the products of two
neighbors with activations of up to 255 in 16 bits, and saturate there silently."""

UNEVEN = (".o", ".down")
"""Products whose inputs no norm has brought to one scale from token to token."""

TINY = 1e-30
"""Stands in for the largest value of a token whose values are all 0."""

INT8_COMPUTE = 4
"""``accuracy_level``: activations are quantized to 8 bits too, which is what makes it fast."""


class _Quantized:
    """What both share: how a file is opened and taken apart."""

    def validate_artifact(self, loaded: LoadedModel, text: str, path: Path) -> list[str]:
        """Which of its weights are not the model's."""
        return weight_problems(loaded, path)

    def open_dequantized(self, loaded: LoadedModel, path: Path, threads: int) -> Runner:
        """The graph with the model's own weights."""
        return cached_runner(open_session(dequantized(loaded, path), threads))

    def open_runner(self, path: Path, threads: int) -> Runner:
        """The graph in onnxruntime, with its cache."""
        return cached_runner(open_session(path, threads))


@dataclass(frozen=True)
class Int8(_Quantized):
    """Every product with one scale per output channel; the embedding is read from the head, which is stored once."""

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        """Why this model cannot be written so, or None."""
        return too_large(loaded.model.config)

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        """Quantize the weights of the graph at ``base`` to 8 bits."""
        import onnx

        proto = onnx.load(str(base))
        graph = Graph(proto)
        untie(graph)
        quantize_products(graph)
        read_embedding_from(graph, HEAD)
        save(proto, path, loaded.model.config)


@dataclass(frozen=True)
class Int4(_Quantized):
    """Every product in blocks of 32 weights with one scale each; embedding rows of 8 bits."""

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        """The size that blocks of weights do not divide, or None."""
        config = loaded.model.config
        for name, size in (("d_model", config.d_model), ("d_ff", config.ff_dim)):
            if size % BLOCK:
                return f"its blocks are of {BLOCK} values, which do not divide {name} {size}"
        return too_large(config, extra=config.vocab_size * config.d_model)  # The head has a table of its own.

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        """Quantize the weights of the graph at ``base`` to 4 bits, in blocks."""
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        proto = onnx.load(str(base))
        graph = Graph(proto)
        add_quantized(graph, TABLE, untie(graph))
        read_embedding_from(graph, TABLE)
        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_COMPUTE, bits=4)
        with quiet():
            quantizer = MatMulNBitsQuantizer(proto, algo_config=config)
            quantizer.process()
        save(quantizer.model.model, path, loaded.model.config)


INT8 = Int8()
INT4 = Int4()


def quantize_products(graph: Graph) -> None:
    """Rewrite each product with a weight, in place."""
    for node in graph.nodes():
        if node.op_type == "MatMul":
            _quantize_product(graph, node)


def _quantize_product(graph: Graph, node: Any) -> None:
    x, w = node.input
    if not graph.has(w):
        return  # Scores and weighted values: both sides are activations, and stay in float32.
    add_quantized(graph, w, graph.take(w))
    multiply = _multiply_per_token if w.endswith(UNEVEN) else _multiply
    graph.replace(node, *multiply(graph, x, w + QUANTIZED, w + SCALE, node.output[0]))


def _multiply(graph: Graph, x: str, w: str, scale: str, out: str) -> list[Step]:
    """x @ w as integers: x is quantized as it comes, in steps that fit its smallest and largest value."""
    return [
        ("DynamicQuantizeLinear", [x], [f"{out}.x", f"{out}.x_scale", f"{out}.x_zero"], {}),
        ("MatMulInteger", [f"{out}.x", w, f"{out}.x_zero"], [f"{out}.sum"], {}),
        ("Cast", [f"{out}.sum"], [f"{out}.sum_float"], {"to": FLOAT}),
        ("Mul", [f"{out}.x_scale", scale], [f"{out}.scale"], {}),
        ("Mul", [f"{out}.sum_float", f"{out}.scale"], [out], {}),
    ]


def _multiply_per_token(graph: Graph, x: str, w: str, scale: str, out: str) -> list[Step]:
    """The same with every token scaled to the range of -1 to 1 first.

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


def add_quantized(graph: Graph, name: str, weight: Array) -> None:
    """Put in a weight ``[in, out]`` as integers and the scale of each column."""
    integers, scale = per_column(weight)
    graph.add(name + QUANTIZED, integers)
    graph.add(name + SCALE, scale)


def per_column(weight: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers of which two neighbors (rows 0 and 1, 2 and 3, …) keep to `LARGEST`, and each column's scale."""
    pairs = np.add.reduceat(weight, np.arange(0, len(weight), 2), axis=0)
    largest = np.maximum(np.abs(weight).max(axis=0), np.abs(pairs).max(axis=0))
    scale = np.maximum(largest / LARGEST, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(weight / scale), -LARGEST, LARGEST).astype(np.int8), scale
