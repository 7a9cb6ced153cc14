"""The Hugging Face folder holds the bundle's graphs under the names that other clients look for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.export.small_model import TEXT, Exported, chat_model, small_model
from tinytf.data.tokenizer import character_tokenizer, encode
from tinytf.errors import UserError
from tinytf.export import manifest
from tinytf.export.formats.huggingface_onnx import ADDED, GENAI, GRAPHS, add_graphs, genai_config
from tinytf.export.formats.onnx.cached_graph import CachedGraph
from tinytf.export.formats.onnx.runtime import open_session
from tinytf.generation.decoding import TransformerEngine, decode
from tinytf.generation.sampling import Sampling
from tinytf.utils.files import sha256_of
from tinytf.weights.checkpoint import LoadedModel

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Exported:
    """The checkpoint and its bundle, to export to once more."""
    folder = tmp_path / "version_0" / "export"
    checkpoint = shutil.copytree(exported.checkpoint.parent, folder.parent) / exported.checkpoint.name
    return Exported(checkpoint, folder, exported.content, 0, "", exported.text)


def listed(folder: Path) -> dict[str, str]:
    artifacts = json.loads((folder / "export.json").read_text())["artifacts"]
    digests: dict[str, str] = next(entry["sha256"] for entry in artifacts if entry["name"] == "huggingface")
    return digests


def test_each_graph_is_the_bundles_own_file_and_takes_no_space(exported: Exported) -> None:
    for name, copy in GRAPHS.items():
        file = exported.folder / exported.entry(name)["file"]
        assert file.samefile(exported.folder / copy)
        assert listed(exported.folder)[copy] == sha256_of(file)
    weights = (exported.folder / "huggingface" / "model.safetensors").stat().st_size
    assert (
        weights < exported.entry("huggingface")["bytes"] < weights + (exported.folder / "model_kv.onnx").stat().st_size
    )


def test_onnxruntime_writes_the_greedy_text_by_what_the_folder_says(exported: Exported, loaded: LoadedModel) -> None:
    """As onnxruntime-genai does: file and names from its config, ids from tokenizer.json."""
    folder = exported.folder / "huggingface"
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    session = open_session(folder / decoder["filename"], 1)
    past = [
        decoder["inputs"][f"past_{half}_names"] % layer
        for layer in range(decoder["num_hidden_layers"])
        for half in ("key", "value")
    ]
    names = [decoder["inputs"][name] for name in ("input_ids", "attention_mask", "position_ids")]
    assert [node.name for node in session.get_inputs()] == names + past
    sizes = {(node.shape[1], node.shape[3]) for node in session.get_inputs() if node.name in past}
    assert sizes == {(decoder["num_key_value_heads"], decoder["head_size"])}
    graph, ids = CachedGraph(session), encode(loaded.tokenizer, "Made glorious")
    wanted = [int(token) for token in islice(decode(TransformerEngine(loaded.model), ids, Sampling(0.0), [0]), 30)]
    found: list[int] = []
    fresh, cache = ids, graph.no_tokens(1, 0)
    for _ in wanted:
        logits, cache = graph.read(torch.tensor([fresh]), cache)
        fresh = [int(logits[0, -1].argmax())]
        found += fresh
    assert found == wanted


def test_a_second_export_keeps_them_or_takes_them_away_with_their_graph(
    copied: Exported, export: Callable[..., int]
) -> None:
    """And leaves what the user put beside them."""
    own = copied.folder / "huggingface" / "onnx" / "model_q4.onnx"
    own.write_text("mine")
    assert export(copied.checkpoint, "huggingface") == 0
    assert set(ADDED) <= set(listed(copied.folder))
    assert (copied.folder / GRAPHS["onnx-kv"]).samefile(copied.folder / "model_kv.onnx")
    (copied.folder / "model_kv.onnx").unlink()
    assert export(copied.checkpoint, "torchscript") == 0
    assert set(ADDED) & set(listed(copied.folder)) == {GRAPHS["onnx-int8"]}
    assert not (copied.folder / GENAI).exists()
    assert {path.name for path in own.parent.iterdir()} == {"model_q4.onnx", "model_quantized.onnx"}


def test_without_a_hugging_face_folder_there_is_none(exported: Exported, loaded: LoadedModel, tmp_path: Path) -> None:
    shutil.copy(exported.folder / "model_kv.onnx", tmp_path)
    add_graphs(tmp_path, [exported.entry("onnx-kv")], loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["model_kv.onnx"]


@pytest.mark.parametrize("name", ADDED)
def test_a_file_of_the_users_is_not_replaced(name: str, copied: Exported, export: Callable[..., int]) -> None:
    content = json.loads((copied.folder / "export.json").read_text())
    content["artifacts"] = [entry for entry in content["artifacts"] if entry["name"] == "huggingface"]
    for added in ADDED:
        del content["artifacts"][0]["sha256"][added]
        (copied.folder / added).unlink()
    (copied.folder / "export.json").write_text(json.dumps(content))
    (copied.folder / name).write_text("mine")
    with pytest.raises(UserError, match="it is yours: move it away"):
        export(copied.checkpoint, "huggingface,torchscript")
    assert (copied.folder / name).read_text() == "mine"


def test_another_graph_under_their_name_is_refused(copied: Exported) -> None:
    """Its sum may be right: it is not what was compared with the model."""
    (copied.folder / GRAPHS["onnx-kv"]).unlink()
    shutil.copy(copied.folder / "model.onnx", copied.folder / GRAPHS["onnx-kv"])
    content = json.loads((copied.folder / "export.json").read_text())
    entry = next(entry for entry in content["artifacts"] if entry["name"] == "huggingface")
    entry["sha256"][GRAPHS["onnx-kv"]] = sha256_of(copied.folder / "model.onnx")
    (copied.folder / "export.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"its huggingface/onnx/model\.onnx is not model_kv\.onnx"):
        manifest.read(copied.folder)


def test_genai_stops_where_texts_and_turns_end_and_nowhere_without_one() -> None:
    chat = chat_model()
    ends = [chat.tokenizer.token_to_id(word) for word in ("<|im_end|>", "<|endoftext|>")]
    stated = genai_config(chat)["model"]
    assert (stated["eos_token_id"], stated["pad_token_id"]) == (ends, chat.tokenizer.token_to_id("<pad>"))
    endless = character_tokenizer(TEXT, end_of_text=False)
    stated = genai_config(LoadedModel(small_model(endless.get_vocab_size(), qk_norm=False), endless))["model"]
    assert stated["eos_token_id"] == []
    assert "pad_token_id" not in stated
    assert stated["type"] == "llama"
