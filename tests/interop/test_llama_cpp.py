"""llama.cpp, through llama-cpp-python: the greedy text, chats, and characters that a model does not know."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interop.conftest import CLIENTS, Bundle
from tests.interop.environments import answer, python_client

PROMPT = "Now is the winter"


def ask(bundle: Bundle, how: str, text: str) -> dict[str, Any]:
    python = python_client("llama-cpp", "llama-cpp-python==0.3.36")
    command = [python, CLIENTS / "llama_text.py", bundle.folder / "model.f32.gguf", "12", how, text]
    found: dict[str, Any] = answer(command)
    return found


@pytest.mark.parametrize("how", ["complete", "chat"])
def test_a_message_is_read_as_a_prompt(how: str, bundle: Bundle) -> None:
    """Without a template of its own, llama-cpp-python writes Llama 2's around it."""
    found = ask(bundle, how, PROMPT)
    assert found["ids"] == bundle.ids(PROMPT)
    # What is no UTF-8 it leaves out.
    assert PROMPT + found["written"] == bundle.greedy(PROMPT, 12).replace("\ufffd", "")


def test_an_unknown_character_is_read_as_blanks(characters: Bundle, plain: Bundle) -> None:
    """It was id -1, at which the client aborted."""
    for bundle in (characters, plain):
        found = ask(bundle, "complete", "Now я is")
        assert found["ids"] == bundle.ids("Now    is")  # Two bytes, each a blank.
        assert found["back"] == "Now    is"
        assert found["written"] == bundle.greedy("Now    is", 12).removeprefix("Now    is")
