"""From settings to token ids on disk: read, split, choose the tokenizer, encode, or find all that done already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tinytf.data.cache import cache_root, digest
from tinytf.data.corpus import Text, scan
from tinytf.data.documents import is_by_document, prepare_documents
from tinytf.data.settings import Prepared, TextSettings
from tinytf.data.splits import Split, cut_text, split_bytes
from tinytf.data.store import build_store, open_store
from tinytf.data.tokenizer import character_tokenizer, tokenizer_from_file, tokenizer_sha256
from tinytf.data.training_bpe import kept, train_on_split

__all__ = ["Prepared", "TextSettings", "prepare"]


def prepare(settings: TextSettings, given: Tokenizer | None = None) -> Prepared:
    """Tokenise a corpus, or find it tokenised.

    A corpus that is one text is read once in every call, so that a changed file is always seen. One that is many
    documents may be too large for that, and is known by its files' names, sizes and times.

    Args:
        settings: see `TextSettings`.
        given: a tokenizer to use in place of the one the settings ask for, as when a checkpoint brings its own.

    Raises:
        UserError: for input that cannot be used; the message names file and place.
    """
    cache = cache_root(settings.cache_dir)
    if is_by_document(settings, cache):
        return prepare_documents(settings, given, cache)
    return _prepare_text(settings, given, cache)


def _prepare_text(settings: TextSettings, given: Tokenizer | None, cache: Path) -> Prepared:
    text = scan(settings.corpus, cache)
    val_text = scan(settings.val_corpus, cache) if settings.val_corpus else None
    test_text = scan(settings.test_corpus, cache) if settings.test_corpus else None
    splits = cut_text(text, settings.val_fraction, settings.test_fraction, val_text, test_text)
    texts = [each for each in (text, val_text, test_text) if each is not None]
    source = _source(settings, texts)
    tokenizer = given or _choose(settings, texts, splits, source, cache)

    identity = {**source, "tokenizer_sha256": tokenizer_sha256(tokenizer)}
    key = digest(identity)
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
        what: dict[str, Any] = {**source, "vocab_size": settings.vocab_size, "trained": 1}
        if split_bytes(splits["train"]) > settings.bpe_sample_bytes:
            what["sample_bytes"] = settings.bpe_sample_bytes
        path = cache / "tokenizers" / f"bpe-{digest(what)}.json"
        return kept(path, lambda: train_on_split(splits["train"], settings.vocab_size, settings.bpe_sample_bytes))
    return tokenizer_from_file(settings.tokenizer)
