"""The ONNX files themselves: standard, self-contained, silent about the machine that wrote them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.small_model import Exported, small_model
from tinytf.export.formats import FORMATS
from tinytf.export.formats.onnx import quantize
from tinytf.export.formats.onnx.graph import Graph
from tinytf.export.formats.onnx.quantize import per_column
from tinytf.export.formats.onnx.runtime import open_session
from tinytf.weights.checkpoint import LoadedModel

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("file", ["model.onnx", "model_kv.onnx", "model_kv.int8.onnx"])
def test_portable_files_hold_standard_operators_only(file: str, exported: Exported) -> None:
    model = onnx.load(exported.folder / file)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


def test_the_int8_file_multiplies_integers(exported: Exported) -> None:
    operators = [node.op_type for node in onnx.load(exported.folder / "model_kv.int8.onnx").graph.node]
    # Four products a layer and the head; what is left in float32 is scores and weighted values.
    assert operators.count("MatMulInteger") == 2 * 4 + 1
    assert operators.count("MatMul") == 2 * 2


def test_files_tell_nothing_of_the_machine_that_wrote_them(exported: Exported) -> None:
    here = str(Path(__file__).parents[2]).encode()
    for path in exported.folder.glob("*.onnx"):
        assert here not in path.read_bytes()
        assert b"stack_trace" not in path.read_bytes()


@pytest.mark.parametrize("rows", [50, 51])
def test_rounding_keeps_to_half_a_step_and_neighbours_to_their_sum(rows: int) -> None:
    weight = np.random.default_rng(0).normal(size=(rows, 7)).astype(np.float32)
    weight[:, 3] = 0.0
    weight[10:12, 4] = 9.0
    rounded, scale = per_column(weight)
    assert rounded.dtype == np.int8
    assert (np.abs(rounded * scale - weight) <= scale * 0.5001).all()
    assert largest_sum_of_neighbours(rounded) <= 128
    assert np.abs(rounded).max() > 63, "no bit is given away where neighbours are small"


def largest_sum_of_neighbours(weight: np.ndarray) -> int:
    """Of two inputs of one output, those of one sign: what they add up to where both activations are at their largest.

    Args:
        weight: ``[in, out]``.
    """
    even = np.pad(weight.astype(int), ((0, len(weight) % 2), (0, 0))).reshape(-1, 2, weight.shape[1])
    return int(max(np.maximum(even, 0).sum(1).max(), np.maximum(-even, 0).sum(1).max()))


@pytest.mark.parametrize("file", ["model_kv.int8.onnx"])
def test_int8_does_not_saturate_on_processors_that_add_in_16_bits(file: str, exported: Exported) -> None:
    """Two products of an unsigned 8-bit activation and a weight fit 16 signed bits, whatever the model."""
    graph = onnx.load(exported.folder / file).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == 3}
    assert len(weights) >= 2 * 4 + 1
    for name, weight in weights.items():
        assert largest_sum_of_neighbours(weight) * 255 < 2**15, name


def rounded_product(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """One product of 192 by 64 with a weight of this name, in 8 bits."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.random.default_rng(1).normal(size=(192, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", floats, ["batch", "seq", 192])],
        [helper.make_tensor_value_info("y", floats, ["batch", "seq", 64])],
        [onnx.numpy_helper.from_array(weight, name)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    quantize.quantize_products(Graph(proto))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.astype(np.float32)})[0]


@pytest.mark.parametrize("uneven", ["layers.0.down", "layers.0.attention.o"])
def test_a_projection_of_a_token_does_not_pay_for_a_larger_one_beside_it(uneven: str) -> None:
    small = np.random.default_rng(0).normal(size=(1, 1, 192))
    both = np.concatenate((small, 300 * small), axis=1)

    def harm(name: str) -> float:
        product = rounded_product(name)
        alone, beside = product(small), product(both)[:, :1]
        return float(np.abs(alone - beside).max() / np.abs(alone).max())

    assert harm(uneven) < 0.02
    assert harm("layers.0.gate_up") > 0.2, "this test sees what it is about"


def test_a_token_of_zeros_is_not_a_division_by_zero() -> None:
    assert (rounded_product("layers.0.down")(np.zeros((1, 2, 192))) == 0).all()


@pytest.mark.parametrize("name", ["onnx", "onnx-kv"])
def test_a_row_of_the_table_that_no_text_reads_is_seen(name: str, exported: Exported, loaded: LoadedModel) -> None:
    format = FORMATS[name]
    path, other = exported.folder / format.file, small_model(loaded.model.config.vocab_size)
    assert format.implementation.validate_artifact(loaded, "", path) == []
    other.embed_tokens.weight.data[-1] = 0
    problems = format.implementation.validate_artifact(replace(loaded, model=other), "", path)
    assert problems == ["weight embed_tokens.weight is not the model's"]


CACHED = ["model_kv.onnx", "model_kv.int8.onnx", "model_kv.int4.onnx"]


@pytest.mark.parametrize("file", CACHED)
def test_inputs_and_outputs_have_the_names_of_optimum(file: str, exported: Exported) -> None:
    """transformers.js, optimum and onnxruntime-genai look for them."""
    session = open_session(exported.folder / file, 1)
    inputs = {node.name: node.shape for node in session.get_inputs()}
    assert inputs == {
        "input_ids": ["batch", "seq"],
        "attention_mask": ["batch", "total_len"],
        "position_ids": ["batch", "seq"],
        **{
            f"past_key_values.{layer}.{half}": ["batch", 2, "past_len", 16]
            for layer in range(2)
            for half in ("key", "value")
        },
    }
    wanted = ["logits", *(name.replace("past_key_values", "present") for name in list(inputs)[3:])]
    assert [node.name for node in session.get_outputs()] == wanted
    assert [node.name for node in open_session(exported.folder / "model.onnx", 1).get_inputs()] == ["input_ids"]


@pytest.mark.parametrize("file", CACHED)
def test_the_batch_size_is_that_of_the_ids(file: str, exported: Exported) -> None:
    """transformers.js begins with a cache of batch 0: a graph that takes its size from there gives nothing."""
    graph = onnx.load(exported.folder / file).graph
    sized = {node.input[0] for node in graph.node if node.op_type == "Shape" and asked_axis(node) == 0}
    assert sized <= {"input_ids"}
    session = open_session(exported.folder / file, 1)
    ids = np.array([[1, 2, 3, 4], [4, 3, 2, 9]])
    first, second = (
        session.run(["logits"], feeds(session, ids, np.ones_like(ids), rows=rows))[0] for rows in (0, len(ids))
    )
    assert first.shape[:2] == ids.shape
    assert np.array_equal(first, second)


def asked_axis(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "start"), 0)


def feeds(session: Any, ids: np.ndarray, mask: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """A prefill, as Hugging Face's libraries feed it: masked positions are all 1."""
    positions = np.where(mask == 0, 1, mask.cumsum(axis=1) - 1)
    past = {
        node.name: np.zeros((rows, node.shape[1], 0, node.shape[3]), np.float32)
        for node in session.get_inputs()
        if node.name.startswith("past")
    }
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}


@pytest.mark.parametrize("file", ["model_kv.onnx", "model_kv.int4.onnx"])
def test_a_batch_padded_on_the_left_has_the_logits_of_each_row_alone(file: str, exported: Exported) -> None:
    """Prefill and three steps, without tinytf, as a server would."""
    session = open_session(exported.folder / file, 1)
    prompts = [[5, 6, 7, 8, 9, 10, 11], [3], [20, 21, 22]]
    after = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    width = max(map(len, prompts))
    ids = np.array([[13] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = np.array([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    together = decoded(session, ids, mask, after)
    for row, prompt in enumerate(prompts):
        alone = decoded(session, np.array([prompt]), np.ones((1, len(prompt)), np.int64), after[row : row + 1])
        assert np.abs(together[row, width - len(prompt) :] - alone[0]).max() < 1e-4 * alone.std()


def decoded(session: Any, ids: np.ndarray, mask: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Logits of a prompt's positions, and of the tokens after it, read one at a time."""
    feed = feeds(session, ids, mask, rows=0)
    names = [name for name in feed if name.startswith("past")]
    logits, *present = session.run(None, feed)
    found = [logits]
    for token in after.T:
        mask = np.concatenate((mask, np.ones_like(mask[:, :1])), axis=1)
        step = {"input_ids": token[:, None], "attention_mask": mask, "position_ids": mask.sum(1, keepdims=True) - 1}
        logits, *present = session.run(None, step | dict(zip(names, present, strict=True)))
        found.append(logits)
    return np.concatenate(found, axis=1)


def test_a_graph_runs_without_tinytf(exported: Exported, loaded: LoadedModel) -> None:
    session = open_session(exported.folder / "model_kv.onnx", 1)
    ids = np.array([[1, 2, 3, 4]])
    logits = session.run(["logits"], feeds(session, ids, np.ones_like(ids), rows=0))[0]
    with torch.no_grad():
        wanted = loaded.model(torch.from_numpy(ids))
    assert np.abs(logits - wanted.numpy()).max() < 1e-4
