"""onnx-kv with weights of 4 bits in blocks of 32 (onnxruntime's MatMulNBits), embedding rows of 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinytf.export import onnx_files
from tinytf.export.onnx_files import check, load, open_cached, save
from tinytf.export.onnx_graph import Graph
from tinytf.export.onnx_int8 import add_rounded
from tinytf.export.onnx_int8 import open_unrounded as open_unrounded
from tinytf.export.onnx_int8 import problems as problems
from tinytf.export.onnx_reading import BLOCK
from tinytf.export.onnx_table import TABLE, look_up, untie
from tinytf.export.quiet import quiet
from tinytf.export.runner import Runner
from tinytf.export.subject import Subject

INT8_COMPUTE = 4
"""``accuracy_level``: activations are rounded to 8 bits too, which is what makes it fast."""


def refusal(subject: Subject) -> str | None:
    """The size that blocks of weights do not divide, or None."""
    config = subject.model.config
    for name, size in (("d_model", config.d_model), ("d_ff", config.ff_dim)):
        if size % BLOCK:
            return f"its blocks are of {BLOCK} values, which do not divide {name} {size}"
    return onnx_files.refusal(subject, extra=config.vocab_size * config.d_model)  # The head has a table of its own.


def write(subject: Subject, path: Path, base: Path | None) -> None:
    """Quantise the weights of the graph at ``base`` to 4 bits, in blocks."""
    assert base is not None
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    proto = load(base)
    graph = Graph(proto)
    add_rounded(graph, TABLE, untie(graph))
    look_up(graph, TABLE)
    settings = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_COMPUTE, bits=4)
    with quiet():
        quantizer = MatMulNBitsQuantizer(proto, algo_config=settings)
        quantizer.process()
    quantized: Any = quantizer.model.model
    save(quantized, path, subject.model.config)
    check(path)


def open_runner(path: Path, threads: int) -> Runner:
    """The graph in onnxruntime, with its cache."""
    return open_cached(path, threads)
