"""onnx-kv with quantized weights: 8 bits with standard operators, or 4 bits with onnxruntime's MatMulNBits.

A written file is taken apart again. Thresholds on the logits alone pass a layer without one column of its values,
which moves them no more than quantization does. So every quantized weight must be the model's to half a step; and the
graph, with the model's own weights in place of the quantized ones, must be the model to what float32 allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinytf.export.formats import Writer, in_blocks
from tinytf.export.formats.onnx import save, too_large
from tinytf.export.formats.onnx.cached_graph import PADDING, cached_runner
from tinytf.export.formats.onnx.fused_projections import FusedTransformer
from tinytf.export.formats.onnx.graph import (
    EMBEDDING,
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
from tinytf.export.formats.onnx.runtime import open_session, require_own_kind
from tinytf.export.parity.runner import Runner, quiet
from tinytf.weights.checkpoint import LoadedModel

LARGEST = 127
"""Of a weight, and of the sum of two neighbors on an input: processors without VNNI add the products of two
neighbors with activations of up to 255 in 16 bits, and saturate there silently."""

UNEVEN = (".o", ".down")
"""Products whose inputs no norm has brought to one scale from token to token."""

TINY = 1e-30
"""Stands in for the largest value of a token whose values are all 0."""

BLOCK = 32
"""Weights that share one scale in 4 bits."""

INT8_COMPUTE = 4
"""``accuracy_level``: activations are quantized to 8 bits too, which is what makes it fast."""

BITS4, SCALES4 = "_Q4", "_scales"
"""What onnxruntime's quantizer adds to the name of a weight, for its blocks of 4 bits and for their scales."""

SLACK = 1.001
"""The scales are float32 themselves."""

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


class _Quantized(Writer):
    """What both share: how a file is opened and taken apart."""

    def open_runner(self, path: Path, threads: int) -> Runner:
        return cached_runner(open_session(path, threads))

    def validate_artifact(self, loaded: LoadedModel, text: str, path: Path) -> list[str]:
        return weight_problems(loaded, path)

    def open_dequantized(self, loaded: LoadedModel, path: Path, threads: int) -> Runner:
        return cached_runner(open_session(dequantized(loaded, path), threads), PADDING)


class Int8(_Quantized):
    """Every product with one scale per output channel; a tied embedding is read from the head, which is stored once."""

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        return too_large(loaded.model.config)

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        import onnx

        proto = onnx.load(str(base))
        graph = Graph(proto)
        tied = loaded.model.config.tie_embeddings
        table = untie(graph, tied)
        quantize_products(graph)
        if not tied:
            add_quantized(graph, TABLE, table)
        read_embedding_from(graph, HEAD if tied else TABLE)
        save(proto, path, loaded)


class Int4(_Quantized):
    """Every product in blocks of 32 weights with one scale each; embedding rows of 8 bits."""

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        config = loaded.model.config
        extra = config.vocab_size * config.d_model if config.tie_embeddings else 0  # The head has a table of its own.
        return in_blocks(config, BLOCK) or too_large(config, extra)

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        proto = onnx.load(str(base))
        graph = Graph(proto)
        add_quantized(graph, TABLE, untie(graph, loaded.model.config.tie_embeddings))
        read_embedding_from(graph, TABLE)
        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_COMPUTE, bits=4)
        with quiet():
            quantizer = MatMulNBitsQuantizer(proto, algo_config=config)
            quantizer.process()
        save(quantizer.model.model, path, loaded)


INT8 = Int8()
INT4 = Int4()


def quantize_products(graph: Graph) -> None:
    """Rewrite each product with a weight, in place."""
    for node in graph.nodes():
        if node.op_type != "MatMul":
            continue
        x, w = node.input
        if not graph.has(w):
            continue  # Scores and weighted values: both sides are activations, and stay in float32.
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
    """The same with every token scaled to the range of -1 to 1 first."""
    # What comes out of attention or of the gate is many times larger for some tokens than for others: in steps that
    # fit the largest, the others keep few of their 8 bits. For the down projection that was nine tenths of a small
    # model's divergence, for the output projection a quarter of that of 54 million parameters.
    if not graph.has("tiny"):
        graph.add("last_axis", np.array([-1]))
        graph.add("tiny", np.array(TINY, np.float32))
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
    scale = np.maximum(largest / LARGEST, SMALLEST_SCALE).astype(np.float32)
    return np.clip(np.rint(weight / scale), -LARGEST, LARGEST).astype(np.int8), scale


@dataclass(frozen=True)
class Int8Weight:
    """A weight ``[in, out]`` as integers q and one scale per column."""

    name: str
    integers: Array
    scale: Array

    @property
    def values(self) -> Array:
        """Dequantized, ``[in, out]``."""
        return self.integers * self.scale

    def is_near(self, exact: Array) -> bool:
        """Whether ``|q * scale - w| <= step / 2`` for every value, with ``step = min(scale, max|w| * 2 / 127)``."""
        # Two neighboring rows share the range of 127, so the scale may be up to twice max|w| / 127 of the column; what
        # the file states beyond that does not widen the step.
        step = np.minimum(self.scale, np.abs(exact).max(axis=0) / (127 / 2) * SLACK)
        return bool((np.abs(self.values - exact) <= step * 0.5 * SLACK + SMALLEST_SCALE).all())


@dataclass(frozen=True)
class Int4Weight:
    """A weight ``[in, out]`` as integers q of 0 to 15 and one scale per 32 rows of a column."""

    name: str
    integers: Array
    scale: Array

    @property
    def values(self) -> Array:
        """Dequantized, ``[in, out]``."""
        return (self.integers.astype(np.float32) - 8) * np.repeat(self.scale, BLOCK, axis=0)

    def is_near(self, exact: Array) -> bool:
        """Whether ``|(q - 8) * scale - w| <= step / 2`` for every value, with ``step = min(|scale|, max|w| / 8)``."""
        largest = np.abs(exact).reshape(-1, BLOCK, exact.shape[1]).max(axis=1)
        step = np.repeat(np.minimum(np.abs(self.scale), largest / 8 * SLACK), BLOCK, axis=0)
        # The largest value of a block is 8 steps from 0, one more than q - 8 reaches on its positive side: a value at
        # q = 15 may be off by a whole step.
        allowed = step * np.where(self.integers == 15, 1, 0.5) * SLACK + SMALLEST_SCALE
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

    require_own_kind(path)
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
    unembedding = loaded.model.unembedding.detach().numpy()
    transposed = {HEAD: unembedding.T, TABLE: weights[EMBEDDING].T}
    return weights | {name: np.ascontiguousarray(weight) for name, weight in transposed.items()}
