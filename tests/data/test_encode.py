"""Encoding in chunks gives the ids of encoding the whole."""

from __future__ import annotations

import os
import random
import signal
import time

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from tinytf.data.tokenizer import byte_pair_tokenizer, character_tokenizer, is_byte_pair_family, tokenizer_from_text
from tinytf.data.tokens import encode as encode_module
from tinytf.data.tokens.encode import chunked_encoder, chunks, encoder, lookup_encoder, splitting_rule
from tinytf.errors import UserError

# How GPT-4, Llama 3 and Qwen cut words: punctuation takes the line breaks after it along, otherwise than in GPT-2.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ATOMS = [
    "a",
    "the",
    "cat",
    "don't",
    "'ll",
    "é",
    "e\u0301",
    "日本",
    "👋🏽",
    "12345",
    ".",
    "...",
    ";)",
    "\x00",
    "\x1c",
    "_",
]
SPACES = [" ", "  ", "\n", "\n\n", "\r\n", " \n ", "\t", "\x0b", "\x85", "\u2028", "\xa0", "\u3000", "", ""]


def nasty_text(seed: int, length: int = 400) -> str:
    rng = random.Random(seed)
    return "".join(rng.choice(ATOMS) + rng.choice(SPACES) for _ in range(length))


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    # Trained on what it will see, so that its merges reach across as much as they ever can.
    return byte_pair_tokenizer(iter([nasty_text(99, 4000)]), 330)


@pytest.fixture(scope="module")
def llama3(gpt2: Tokenizer) -> Tokenizer:
    tokenizer = Tokenizer.from_str(gpt2.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer_from_text(tokenizer.to_str())


@pytest.mark.parametrize("chunk", [1, 7, 60])
@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
def test_no_cut_changes_an_id(
    kind: str, chunk: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    monkeypatch.setattr(encode_module, "CHUNK", chunk)
    assert is_byte_pair_family(tokenizer) == (kind == "llama3")
    for seed in range(15):
        text = nasty_text(seed)
        blocks = [text[i : i + 97] for i in range(0, len(text), 97)]
        parts = list(chunks(blocks, splitting_rule(tokenizer), "text"))
        assert "".join(parts) == text
        assert len(parts) > 3
        ids = np.concatenate(list(chunked_encoder(tokenizer)(blocks, "text")))
        assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_a_cut_elsewhere_would_change_ids(gpt2: Tokenizer) -> None:
    """Or the test above would prove nothing."""
    text = nasty_text(1, 120)
    whole = gpt2.encode(text).ids
    changed = [i for i in range(1, len(text)) if gpt2.encode(text[:i]).ids + gpt2.encode(text[i:]).ids != whole]
    allowed = splitting_rule(gpt2)
    assert allowed is not None
    assert changed
    assert not any(allowed.match(text, i) for i in changed)


def test_no_cut_reaches_into_a_token_that_a_file_adds(gpt2: Tokenizer) -> None:
    for token in (AddedToken("the cat"), AddedToken("<mask>", rstrip=True)):
        tokenizer = Tokenizer.from_str(gpt2.to_str())
        tokenizer.add_tokens([token])
        assert splitting_rule(tokenizer) is None
    spaces = Tokenizer.from_str(gpt2.to_str())
    spaces.add_tokens([AddedToken("    ")])
    assert splitting_rule(spaces) is not None
    text = "  a     b         c\n     d"
    assert np.concatenate(list(chunked_encoder(spaces)([text], "text"))).tolist() == spaces.encode(text).ids


def test_words_are_forgotten_when_they_are_too_many(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_module, "CHARACTERS_CACHED", 10)
    monkeypatch.setattr(encode_module, "CHUNK", 20)
    monkeypatch.setattr(encode_module, "CHUNKS_AT_ONCE", 1)
    text = nasty_text(5)
    ids = np.concatenate(list(chunked_encoder(gpt2)([text], "text")))
    assert ids.tolist() == gpt2.encode(text, add_special_tokens=False).ids


def test_the_table_gives_the_ids_of_the_tokenizer() -> None:
    text = "".join(map(nasty_text, range(5))) + "\U0010ffff<|endoftext|>"
    for end_of_text in (False, True):
        tokenizer = character_tokenizer(text, end_of_text=end_of_text)
        ids = np.concatenate(list(lookup_encoder(tokenizer)([text[:1000], text[1000:]], "text")))
        assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_an_unknown_character_is_placed_by_line_and_byte() -> None:
    encode = encoder(character_tokenizer("é \n", end_of_text=False))
    with pytest.raises(UserError, match=r"'x' \(U\+0078 LATIN SMALL LETTER X\) in line 2 of a\.txt \(byte 7\)"):
        list(encode(["é \n ", "éxé"], "a.txt"))


def test_a_tokenizer_without_a_known_rule_gets_the_document_whole(
    gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixed = Tokenizer.from_str(gpt2.to_str())
    prefixed.pre_tokenizer = pre_tokenizers.Metaspace()
    prefixed.decoder = decoders.Metaspace()
    assert splitting_rule(prefixed) is None
    monkeypatch.setattr(encode_module, "CHUNK", 4)
    assert list(chunks(["some words", " and more"], None, "text")) == ["some words and more"]
    monkeypatch.setattr(encode_module, "LONGEST_CHUNK", 12)
    with pytest.raises(UserError, match=r"a\.txt: more than 12 characters .* not known to give the same ids"):
        list(chunks(["some words", " and more"], None, "a.txt"))
    with pytest.raises(UserError, match=r"no white space after a word"):
        list(chunks(["somewords", "andmore"], splitting_rule(gpt2), "a.txt"))


def test_a_normalizer_is_found_out(gpt2: Tokenizer) -> None:
    lowering = Tokenizer.from_str(gpt2.to_str())
    lowering.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match=r"a\.txt differs from character 4 on, 'C'"):
        list(encoder(lowering)(["the Cat"], "a.txt"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_process_forked_after_the_library_had_threads_encodes_too() -> None:
    tokenizer = byte_pair_tokenizer(iter(["the cat and the hat " * 50]), 265)
    texts = [f"the hat {number}" for number in range(1000)]
    list(chunked_encoder(tokenizer)(texts, "here"))
    child = os.fork()
    if child == 0:
        list(chunked_encoder(tokenizer)(texts, "there"))
        os._exit(0)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)
