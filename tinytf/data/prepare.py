"""From settings to token ids on disk: read, split, choose the tokenizer, encode, or find all that done already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tinytf.data.cache import cache_root, written_whole
from tinytf.data.corpus import Text, scan
from tinytf.data.pieces import BEFORE_WHITE_SPACE, pieces
from tinytf.data.progress import byte_progress
from tinytf.data.splits import Split, cut_text, split_bytes
from tinytf.data.store import TokenStore, build_store, open_store
from tinytf.data.tokenizer import (
    byte_pair_tokenizer,
    character_tokenizer,
    tokenizer_from_file,
    tokenizer_from_text,
    tokenizer_sha256,
)
from tinytf.errors import UserError


@dataclass(frozen=True)
class TextSettings:
    """What decides the token ids; the names are those of `tinytf.data.TextDataModule`."""

    corpus: str
    tokenizer: str
    vocab_size: int
    val_fraction: float
    test_fraction: float
    val_corpus: str | None
    test_corpus: str | None
    cache_dir: str | None


@dataclass(frozen=True)
class Prepared:
    """Token ids on disk, the tokenizer they were made with, and plain words for what they are.

    Attributes:
        fingerprint: plain types only; it goes into every checkpoint.
    """

    tokenizer: Tokenizer
    store: TokenStore
    fingerprint: dict[str, Any]


def prepare(settings: TextSettings, given: Tokenizer | None = None) -> Prepared:
    """Tokenise a corpus, or find it tokenised. Every call reads the text once, so a changed file is always seen.

    Args:
        settings: see `TextSettings`.
        given: a tokenizer to use in place of the one the settings ask for, as when a checkpoint brings its own.

    Raises:
        UserError: for input that cannot be used; the message names file and place.
    """
    cache = cache_root(settings.cache_dir)
    text = scan(settings.corpus, cache)
    val_text = scan(settings.val_corpus, cache) if settings.val_corpus else None
    test_text = scan(settings.test_corpus, cache) if settings.test_corpus else None
    splits = cut_text(text, settings.val_fraction, settings.test_fraction, val_text, test_text)
    texts = [each for each in (text, val_text, test_text) if each is not None]
    source = _source(settings, texts)
    tokenizer = given or _choose(settings, texts, splits, source, cache)

    identity = {**source, "tokenizer_sha256": tokenizer_sha256(tokenizer)}
    key = _digest(identity)
    folder = cache / "tokens" / key
    store = open_store(folder, key) or build_store(folder, key, splits, tokenizer)
    fingerprint = {
        "corpus": settings.corpus,
        **identity,
        "bytes": text.n_bytes,
        "documents": len(text.documents),
        "split_bytes": dict(store.bytes),
        "split_tokens": dict(store.tokens),
        "tokenizer": settings.tokenizer,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    return Prepared(tokenizer, store, fingerprint)


def _source(settings: TextSettings, texts: list[Text]) -> dict[str, Any]:
    """What the splits are a function of, apart from the tokenizer."""
    named = iter(texts)
    return {
        "sha256": next(named).sha256,
        "split": {
            "order": "train, test, val",
            "val_fraction": None if settings.val_corpus else settings.val_fraction,
            "test_fraction": settings.test_fraction,
            "val_sha256": next(named).sha256 if settings.val_corpus else None,
            "test_sha256": next(named).sha256 if settings.test_corpus else None,
        },
    }


def _choose(
    settings: TextSettings, texts: list[Text], splits: dict[str, Split], source: dict[str, Any], cache: Path
) -> Tokenizer:
    if settings.tokenizer == "char":
        codes = np.unique(np.concatenate([text.codes for text in texts]))
        several = any(len(split) > 1 for split in splits.values())
        return character_tokenizer(map(chr, codes.tolist()), end_of_text=several)
    if settings.tokenizer == "bpe":
        key = _digest({**source, "vocab_size": settings.vocab_size, "trained": 1})
        path = cache / "tokenizers" / f"bpe-{key}.json"
        return _kept(path, lambda: _train(splits["train"], settings.vocab_size))
    return tokenizer_from_file(settings.tokenizer)


def _kept(path: Path, train: Callable[[], Tokenizer]) -> Tokenizer:
    try:
        return tokenizer_from_text(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, UserError):
        # Missing, or damaged on the disk: either way it is trained again from the same text.
        tokenizer = train()
        with written_whole(path) as file:
            file.write(tokenizer.to_str().encode())
        return tokenizer


def _train(split: Split, vocab_size: int) -> Tokenizer:
    """Byte-pair merges from the training part alone: what validation measures must not have shaped the tokens."""
    with byte_progress("reading for the tokenizer", split_bytes(split)) as progress:

        def texts() -> Iterator[str]:
            for segment in split:
                for piece in pieces(segment.blocks(), BEFORE_WHITE_SPACE, segment.document.name):
                    progress.advance(len(piece.encode()))
                    yield piece

        return byte_pair_tokenizer(texts(), vocab_size)


def _digest(what: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
