"""The ONNX files themselves: standard, self-contained, silent about the machine that wrote them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import Exported

from tinytf.export.formats import FORMATS
from tinytf.export.judge import FAILED, Judge
from tinytf.export.onnx_files import open_session
from tinytf.export.onnx_int8 import per_row
from tinytf.export.subject import Subject
from tinytf.export.thresholds import THRESHOLDS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


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


@pytest.mark.parametrize(
    ("weight", "change"),
    [
        ("layers.1.mlp_norm.weight", lambda value: np.ones_like(value)),
        ("norm.weight", lambda value: np.ones_like(value)),
        ("layers.0.gate_up", lambda value: np.roll(value, value.shape[1] // 2, axis=1)),
        ("embed_tokens.weight", lambda value: value * (np.arange(len(value)) < len(value) - 1)[:, None]),
    ],
)
def test_a_bug_in_the_file_is_caught(
    weight: str, change: object, exported: Exported, subject: Subject, evaluation: object, tmp_path: Path
) -> None:
    """The planted bugs again, through onnxruntime: a file whose weight is not the model's."""
    model = onnx.load(exported.folder / "model_kv.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    value = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(value).astype(np.float32), weight))
    onnx.save(model, tmp_path / "model_kv.onnx")
    judge = Judge.of(subject, evaluation, THRESHOLDS, 1)
    outcome = judge.verdict(FORMATS["onnx-kv"], tmp_path / "model_kv.onnx")
    assert outcome.status == FAILED
    assert "max_abs" in outcome.reasons[0]


def test_rounding_keeps_to_seven_bits_and_half_a_step() -> None:
    weight = np.random.default_rng(0).normal(size=(7, 50)).astype(np.float32)
    weight[3] = 0.0
    rounded, scale = per_row(weight)
    assert np.abs(rounded).max() == 63
    assert rounded.dtype == np.int8
    assert (np.abs(rounded * scale - weight) <= scale * 0.5001).all()


def test_int8_does_not_saturate_on_processors_that_add_in_16_bits(exported: Exported) -> None:
    """Two products of an unsigned 8-bit activation and a weight fit 16 signed bits, whatever the model."""
    model = onnx.load(exported.folder / "model_kv.int8.onnx")
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == 3]
    assert len(weights) >= 2 * 4 + 1
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) * 255 * 2 < 2**15


def test_dynamic_sizes_are_named(exported: Exported) -> None:
    session = open_session(exported.folder / "model_kv.onnx", 1)
    assert session.get_inputs()[0].shape == ["batch", "seq"]
    assert session.get_inputs()[1].shape == ["batch", 2, "past_len", 16]


def test_a_graph_runs_without_tinytf(exported: Exported, subject: Subject) -> None:
    """As a server would: names as transformers and onnxruntime-genai use them."""
    session = open_session(exported.folder / "model_kv.onnx", 1)
    past = {
        f"past_key_values.{layer}.{half}": np.zeros((1, 2, 0, 16), np.float32)
        for layer in range(2)
        for half in ("key", "value")
    }
    logits = session.run(["logits"], {"tokens": np.array([[1, 2, 3, 4]]), **past})[0]
    with torch.no_grad():
        wanted = subject.model(torch.tensor([[1, 2, 3, 4]]))
    assert np.abs(logits - wanted.numpy()).max() < 1e-4
