"""The page of the format web, its modules run by Node with the packages that the page names."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from tests.export.small_model import LOOSE, TEMPLATE, TEXT, chat_model, save_checkpoint
from tests.interop.conftest import CLIENTS, Bundle
from tests.interop.environments import answer, node_client
from tinytf.cli import export as export_command
from tinytf.data.examples.chat import Chat, special_encoder
from tinytf.export.formats.onnx.runtime import OnnxEngine
from tinytf.export.formats.web import LIBRARY, VERSION
from tinytf.generation.decoding import decode
from tinytf.generation.sampling import Sampling

PROMPT = "Now is the winter"
COUNT = 100
"""Past the context of 48 tokens, so that it slides."""


def test_the_page_writes_the_greedy_text_of_its_graph(bundle: Bundle) -> None:
    folder = node_client("transformers.js", f"{LIBRARY}@{VERSION}")
    found = answer(["node", CLIENTS / "web_page.mjs", bundle.folder / "web", str(COUNT), PROMPT], cwd=folder)
    ids, end = bundle.ids(PROMPT), bundle.loaded.tokenizer.token_to_id("<|endoftext|>")
    engine = OnnxEngine(bundle.folder / "model_kv.int8.onnx")
    new = torch.cat(list(islice(decode(engine, ids, Sampling(0.0), [0]), COUNT))).tolist()
    assert found["ids"] == ids + new[: new.index(end) if end in new else COUNT]
    assert found["drawn"][0] == found["drawn"][1] != found["ids"]
    assert found["nothing"] == [found["start"]] == [bundle.loaded.start_token]
    if bundle.loaded.name == "char":
        assert '"☃"' in found["unknown"], "transformers.js leaves out what it does not know"


def test_a_chat_model_is_asked_in_its_template(tmp_path: Path) -> None:
    """The ids of the question, whose special tokens are no text."""
    loaded = chat_model()
    checkpoint = save_checkpoint(tmp_path / "best.ckpt", loaded)
    (tmp_path / "held_out.txt").write_text(TEXT, encoding="utf-8")
    flags = ["--ckpt_path", str(checkpoint), "--formats", "web", "--text", str(tmp_path / "held_out.txt")]
    assert export_command.run([*flags, *(flag for setting in LOOSE for flag in ("--threshold", setting))]) == 0
    folder = node_client("transformers.js", f"{LIBRARY}@{VERSION}")
    found = answer(["node", CLIENTS / "web_page.mjs", tmp_path / "export" / "web", "4", "Now is"], cwd=folder)
    question = Chat.of(TEMPLATE, loaded.tokenizer).render(
        [{"role": "user", "content": "Now is"}], add_generation_prompt=True
    )
    asked = special_encoder(loaded.tokenizer)(question, "").tolist()
    assert found["ids"][: len(asked)] == asked
