"""ONNX and GGUF files from strangers: one line or a failed row, and nothing outside is read."""

from __future__ import annotations

import json
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.export.small_model import Exported
from tests.export.test_strangers import DEEP, outcome
from tinytf.cli import generate
from tinytf.errors import UserError
from tinytf.weights.checkpoint import LoadedModel

onnx = pytest.importorskip("onnx")
resource = pytest.importorskip("resource", reason="Windows has none")


def with_metadata(source: Path, target: Path, text: str) -> Path:
    model = onnx.load(source)
    onnx.helper.set_model_props(model, {"tinytf": text})
    onnx.save(model, target)
    return target


@pytest.fixture
def graph(exported: Exported, tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    shutil.copy(exported.folder / "tokenizer.json", tmp_path / "tokenizer.json")
    return Path(shutil.copy(exported.folder / "model_kv.onnx", tmp_path / "model_kv.onnx"))


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        generate.run(["--model", str(path), "--prompt", "Now", "--max_new_tokens", "3"])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--model {path}: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_seq_len": -5}, "max_seq_len is -5, but must be at least 1"),
        ({"max_seq_len": 5.5}, "max_seq_len is 5.5, but must be int"),
        ({"max_seq_len": None}, "max_seq_len is None"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"vocab_size": 10**9}, "its logits are not those of a vocabulary of 1000000000"),
        ({"n_layers": 10**9}, "inputs and outputs are not those of the model"),
        ({"d_model": 128}, "not of the size that its metadata states"),
        ({"tie_embeddings": 0}, "tie_embeddings is 0, but must be bool"),
        ({"head_dim": 18}, "not of the size that its metadata states"),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3', but must be a mapping or null"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope_scaling.rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, "rope_scaling.factor is nan"),
        ({"rope_scaling": {"rope_type": ["linear"], "factor": 2}}, "rope_scaling.rope_type is ['linear']"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ({"start_token": -1}, "its start_token is -1"),
        ({"start_token": 10**6}, "its start_token is 1000000"),
        ({"start_token": True}, "its start_token is True"),
    ],
    ids=str,
)
def test_metadata_is_validated_as_a_config_is(change: dict[str, Any], said: str, graph: Path) -> None:
    stated = json.loads(onnx.load(graph).metadata_props[0].value)
    assert said in refused(with_metadata(graph, graph, json.dumps(stated | change)))


@pytest.mark.parametrize("text", ["", "{", "null", "5", '"text"', "{}", DEEP, "[]", "NaN"], ids=lambda text: text[:5])
def test_metadata_that_is_none_is_one_line(text: str, graph: Path) -> None:
    assert "metadata" in (found := refused(with_metadata(graph, graph, text))) or "vocab_size is missing" in found


def test_data_in_other_files_is_not_read(graph: Path) -> None:
    """Neither by generate nor by verify: an absolute path, a path above, a link."""
    for place in ("/etc/passwd", "../victim", "weights.bin"):
        model = onnx.load(graph)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", place
        path = graph.with_name("external.onnx")
        path.write_bytes(model.SerializeToString())
        assert "it keeps data in other files" in refused(path)


def test_control_flow_and_functions_are_not_run(graph: Path) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    model = onnx.load(graph)
    model.graph.node.append(onnx.helper.make_node("Loop", [], ["x"], body=body))
    graph.write_bytes(model.SerializeToString())
    assert "control flow" in refused(graph)


def test_a_file_past_two_gigabytes_is_not_read(graph: Path) -> None:
    os.truncate(graph, 2**31 + 1)
    assert "more than the 2,147,483,648 that it may have" in refused(graph)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_graph_is_one_line_or_runs(seed: int, exported: Exported, graph: Path) -> None:
    """Truncated, or some bytes of its structure changed; 4,500 of the kind crashed no onnxruntime 1.32."""
    chance, content = random.Random(seed), bytearray(graph.read_bytes())
    if seed % 3 == 0:
        del content[chance.randrange(len(content)) :]
    else:
        names = [at for at in range(len(content) - 40) if content[at : at + 3] in (b"lay", b"val", b"Mat", b"pas")]
        for _ in range(chance.randint(1, 6)):
            content[chance.choice(names) + chance.randint(-4, 8)] = chance.randrange(256)
    graph.write_bytes(content)
    assert outcome(lambda: generate.run(["--model", str(graph), "--prompt", "Now", "--max_new_tokens", "3"])) in (0, 2)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_gguf_file_is_read_back_with_an_end(seed: int, loaded: LoadedModel, tmp_path: Path) -> None:
    """Without llama.cpp, which has a process of its own. Any Exception is a failed row; memory and time are bounded."""
    pytest.importorskip("gguf")
    from tinytf.export.formats.gguf import F32, file_problems

    path, chance = tmp_path / "model.f32.gguf", random.Random(seed)
    F32.write(loaded, path, None)
    content = bytearray(path.read_bytes())
    if seed % 3 == 0:
        del content[chance.randrange(len(content)) :]
    for _ in range(chance.randint(1, 6)):
        content[chance.randrange(min(len(content), 4000))] = chance.randrange(256)
    path.write_bytes(content)
    with suppress(Exception):
        file_problems(loaded, path, "F32")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20
