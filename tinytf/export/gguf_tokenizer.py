"""A tokenizer as llama.cpp keeps it: byte-level BPE as its ``gpt2``, characters as its ``rwkv``.

``rwkv`` takes the longest entry that fits, which for entries of one character is that character, and it alone assumes
no end-of-text id: with ``gpt2`` and ``llama``, a file that names none ends its texts at token 11 or 2, here a letter.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tinytf.data.tokenizer import encode, end_of_text_id, is_by_character, is_gpt2_like
from tinytf.export.gguf_running import load

ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
"""How ``rwkv`` entries are written; other characters stand for themselves."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def refuse_tokenizer(tokenizer: Tokenizer) -> str | None:
    """What of a tokenizer llama.cpp cannot express."""
    if is_by_character(tokenizer):
        return None
    if is_gpt2_like(tokenizer):
        if end_of_text_id(tokenizer) is None:
            return "its tokenizer has no end-of-text token, and llama.cpp would take token 11 for it"
        return None
    return "its tokenizer is neither by character nor byte-level BPE with GPT-2's word pattern"


def add_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Write tokens in the order of their ids, their types, and what llama.cpp needs to use them the same way."""
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    by_id = {id: token for token, id in tokenizer.get_vocab(with_added_tokens=True).items()}
    # The embedding may have more rows than the tokenizer has entries.
    tokens = [by_id.get(id, f"<unused{id}>") for id in range(vocab_size)]
    kinds = {None: NORMAL, False: USER_DEFINED, True: CONTROL}
    types = [kinds[added.get(token)] if id in by_id else UNUSED for id, token in enumerate(tokens)]
    if is_by_character(tokenizer):
        writer.add_tokenizer_model("rwkv")
        writer.add_token_list([token.translate(ESCAPES) for token in tokens])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_merges(_merges(tokenizer))
    writer.add_token_types(types)
    end = end_of_text_id(tokenizer)
    if end is not None:
        writer.add_bos_token_id(end)
        writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _merges(tokenizer: Tokenizer) -> list[str]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    # llama.cpp refuses a file whose list of merges is empty.
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges] or [""]


def tokenizer_problems(tokenizer: Tokenizer, text: str, path: Path) -> list[str]:
    """Whether llama.cpp, where it is installed, gives a text the same ids and gives it back."""
    if find_spec("llama_cpp") is None:
        return []
    llama = load(path)
    wanted = encode(tokenizer, text)
    ids = llama.tokenize(text.encode(), add_bos=False, special=False)
    if ids != wanted:
        at = next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), min(len(ids), len(wanted)))
        return [f"llama.cpp's token ids differ from token {at} on"]
    back = llama.detokenize(ids).decode("utf-8", errors="replace")
    return [] if back == text else ["llama.cpp does not give back the text it tokenised"]
