"""Two small models, exported once in every format that can be written here, for the clients of this folder.

A test here takes `bpe` or `characters` (or `bundle`, both in turn), an environment of `environments.py`, and compares
what the client writes with `Bundle.greedy`. Nothing here runs in `make test`: each test has the marker ``interop``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.export.small_model import LOOSE, TEXT, save_checkpoint, small_model, tokenizer_of
from tinytf.cli import export as export_command
from tinytf.data.tokenizer import character_tokenizer, encode
from tinytf.export.formats import FORMATS
from tinytf.generation.decoding import TransformerEngine, decode
from tinytf.generation.sampling import Sampling
from tinytf.weights.checkpoint import LoadedModel

HERE = Path(__file__).parent
CLIENTS = HERE / "clients"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("interop")


@dataclass(frozen=True)
class Bundle:
    """A model and the folder that `tinytf export` made of it."""

    folder: Path
    loaded: LoadedModel

    def ids(self, prompt: str) -> list[int]:
        return encode(self.loaded.tokenizer, prompt)

    def greedy(self, prompt: str, count: int = 24) -> str:
        """The prompt and so many tokens more, as PyTorch writes them; a token that ends a text is a token here."""
        ids = self.ids(prompt)
        steps = decode(TransformerEngine(self.loaded.model), ids, Sampling(0.0), [0])
        ids = ids + torch.cat(list(islice(steps, count))).tolist()
        text: str = self.loaded.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def made(kind: str, folder: Path) -> Bundle:
    tokenizer = character_tokenizer(TEXT, end_of_text=False) if kind == "plain" else tokenizer_of(kind)
    loaded = LoadedModel(small_model(tokenizer.get_vocab_size()), tokenizer, {"config": {"name": kind}}, 7)
    checkpoint = save_checkpoint(folder / "best.ckpt", loaded)
    (folder / "held_out.txt").write_text(TEXT, encoding="utf-8")
    names = [name for name, format in FORMATS.items() if not format.missing("writing")]
    flags = ["--ckpt_path", str(checkpoint), "--formats", ",".join(names), "--text", str(folder / "held_out.txt")]
    assert export_command.run([*flags, *(flag for setting in LOOSE for flag in ("--threshold", setting))]) == 0
    return Bundle(folder / "export", loaded)


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Byte-level BPE of 300 entries."""
    return made("bpe", tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="session")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """By character, with a token for the end of a text."""
    return made("char", tmp_path_factory.mktemp("char"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """By character, of a text without documents: every token is a character."""
    return made("plain", tmp_path_factory.mktemp("plain"))


@pytest.fixture(params=["bpe", "characters"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Each of the two."""
    found: Bundle = request.getfixturevalue(request.param)
    return found
