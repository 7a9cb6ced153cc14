"""What decides the token ids, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from tinytf.data.store import TokenStore

SPLITS = ("auto", "tail", "document")
BPE_SAMPLE_BYTES = 100_000_000


@dataclass(frozen=True)
class TextSettings:
    """The text, its splits and its tokens."""

    # Names and defaults are those of tinytf.data.TextDataModule, where each is explained.

    corpus: str = "shakespeare"
    tokenizer: str = "char"
    vocab_size: int = 8192
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    val_corpus: str | None = None
    test_corpus: str | None = None
    cache_dir: str | None = None
    # Checkpoints of before these settings lack them; what they default to is what was done then.
    split_by: str = "auto"
    text_field: str = "text"
    bpe_sample_bytes: int = BPE_SAMPLE_BYTES
    prepare_processes: int = 0


@dataclass(frozen=True)
class Prepared:
    """Token ids on disk, the tokenizer they were made with, and plain words for what they are.

    Attributes:
        fingerprint: plain types only; it goes into every checkpoint.
    """

    tokenizer: Tokenizer
    store: TokenStore
    fingerprint: dict[str, Any]
