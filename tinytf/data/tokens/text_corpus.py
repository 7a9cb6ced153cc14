"""3. Tokens of a corpus of plain text, which is read from end to end in every call and split at a position."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tinytf.data.config import CorpusConfig, PreparedCorpus, cache_write, digest
from tinytf.data.documents import Text, scan
from tinytf.data.sources.files import byte_progress
from tinytf.data.splits import Split, TextSpan, cut_text, split_bytes
from tinytf.data.tokenizer import character_tokenizer, tokenizer_from_file, tokenizer_sha256
from tinytf.data.tokens.encode import encoder
from tinytf.data.tokens.store import TokenStore, describe_store, ids_dtype, open_store, separator_of
from tinytf.data.tokens.train_bpe import cached_tokenizer, train_on_split
from tinytf.utils.text import public


def prepare_text(config: CorpusConfig, given: Tokenizer | None) -> PreparedCorpus:
    cache = config.cache
    text = scan(config.corpus, cache)
    val_text = scan(config.val_corpus, cache) if config.val_corpus else None
    test_text = scan(config.test_corpus, cache) if config.test_corpus else None
    splits = cut_text(text, config.val_fraction, config.test_fraction, val_text, test_text)
    texts = [each for each in (text, val_text, test_text) if each is not None]
    source = {
        "sha256": text.sha256,
        "split": {
            "order": "train, test, val",
            "val_fraction": None if val_text else config.val_fraction,
            "test_fraction": config.test_fraction,
            "val_sha256": val_text.sha256 if val_text else None,
            "test_sha256": test_text.sha256 if test_text else None,
        },
    }
    tokenizer = given or _choose_tokenizer(config, texts, splits, source)
    identity = {**source, "tokenizer_sha256": tokenizer_sha256(tokenizer)}
    key = digest(identity)
    folder = cache / "tokens" / key
    store = open_store(folder, key) or build_store(folder, key, splits, tokenizer)
    fingerprint = {
        "corpus": public(config.corpus),
        **identity,
        "bytes": text.n_bytes,
        "documents": len(text.documents),
        "split_bytes": dict(store.bytes),
        "split_tokens": dict(store.tokens),
        "tokenizer": config.tokenizer,
        "vocab_size": tokenizer.get_vocab_size(),
        "start_token": store.start_token,
    }
    return PreparedCorpus(tokenizer, store, fingerprint)


def _choose_tokenizer(
    config: CorpusConfig, texts: list[Text], splits: dict[str, Split], source: dict[str, Any]
) -> Tokenizer:
    if config.tokenizer == "char":
        # Of every split: a character that only validation has must have an id there too.
        codes = np.unique(np.concatenate([text.code_points for text in texts]))
        several = any(len(split) > 1 for split in splits.values())
        return character_tokenizer(map(chr, codes.tolist()), end_of_text=several)
    if config.tokenizer == "bpe":
        key: dict[str, Any] = {**source, "vocab_size": config.vocab_size, "trained": 1}
        if split_bytes(splits["train"]) > config.bpe_sample_bytes:
            # Only if it decides anything: a whole text gives one tokenizer, whatever the sample's size is set to.
            key["sample_bytes"] = config.bpe_sample_bytes
        path = config.cache / "tokenizers" / f"bpe-{digest(key)}.json"
        return cached_tokenizer(
            path, lambda: train_on_split(splits["train"], config.vocab_size, config.bpe_sample_bytes)
        )
    return tokenizer_from_file(config.tokenizer)


def build_store(folder: Path, key: str, splits: dict[str, Split], tokenizer: Tokenizer) -> TokenStore:
    """Tokenize the splits of plain text into ``folder``.

    Raises:
        UserError: for characters that the tokenizer does not know, and for several documents if it has no token to
            stand between them.
    """
    dtype = ids_dtype(tokenizer)
    separator = separator_of(tokenizer) if any(len(split) > 1 for split in splits.values()) else None
    encode = encoder(tokenizer)
    tokens = {}
    sizes = {name: split_bytes(split) for name, split in splits.items()}
    with byte_progress("tokenizing", sum(sizes.values())) as progress:
        for name, split in splits.items():
            count = 0
            with cache_write(folder / f"{name}.bin") as file:
                for number, span in enumerate(split):
                    if number:
                        count += file.write(np.array([separator], dtype=dtype).tobytes())
                    for ids in encode(_counted(span, progress), span):
                        count += file.write(ids.astype(dtype).tobytes())
            tokens[name] = count // np.dtype(dtype).itemsize
    # The key speaks of the text as it was when its checksum was taken.
    for split in splits.values():
        for span in split:
            span.document.require_unchanged()
    return describe_store(folder, key, tokenizer, tokens, sizes)


def _counted(span: TextSpan, progress: Any) -> Iterator[str]:
    for block in span.blocks():
        progress.update(len(block.encode()))
        yield block
