"""The settings that decide token ids, what comes of them, and the cache folder in which they lie."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, get_type_hints

from tinytf.errors import UserError, require_at_least
from tinytf.utils.files import atomic_write, shorten, user_path
from tinytf.utils.machine import usable_cores

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tinytf.data.tokens.store import TokenStore

OF_BASE = "base"
"""What `CorpusConfig.tokenizer` is where a base model brings its own."""

SPLIT_BY = ("auto", "position", "document")

ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which the temporary file of a killed process is removed."""

NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST, getattr(errno, "EDQUOT", -1))


@dataclass(frozen=True)
class CorpusConfig:
    """The text, its splits and its tokens: everything that decides token ids.

    Args:
        corpus: The text to learn: shakespeare, shakespeare-complete (both with the extra "shakespeare"), python-docs,
            a file, a folder, a glob, or a URL ending in #sha256=<checksum>. Files are text (.txt, .md) or records
            (.jsonl, .parquet): texts, prompts with completions, or conversations. They may be compressed (.gz, .zst,
            .bz2, .xz). Many remote files are s3://…, gs://… or https://… with a glob or {000..127}; a Hugging Face
            data set is hf://name?config=…&split=train&revision=….
        tokenizer: What a token is: char (one character), bpe (byte-level, trained on the training part), or the path
            of a tokenizer.json. With a model.base it is that model's own, and is called base.
        vocab_size: Entries of the bpe vocabulary, at least 258. Other tokenizers have a size of their own.
        val_fraction: Fraction of the text that is for validation and never trained on: its end, by bytes, or if
            data.split_by is document about this fraction of the documents. Not used if val_corpus is given.
        test_fraction: Fraction of the text just before the validation part, or of the documents, that is for testing;
            0 for no test split.
        val_corpus: Text for validation in place of the end of corpus; anything that corpus takes.
        test_corpus: Text for testing in place of a part of corpus; anything that corpus takes.
        cache_dir: Folder for downloads and token ids; unset, it is $TINYTF_CACHE, else ~/.cache/tinytf.
        split_by: position: the text's end is for validation; document: a checksum of each document's text decides
            its split, which never changes when files are added; auto: document if the corpus holds documents
            (.jsonl, .parquet, hf://), position for text files.
        text_field: Field of a .jsonl, .parquet or hf:// record that holds its text. Unless it is set, records without
            it may have prompt and completion, or messages (a list of role and content): completions are learned.
        bpe_sample_bytes: Bytes of the training part that a bpe tokenizer is trained on, taken from all over it; a
            shorter one is used whole.
        prepare_processes: Processes that tokenize a corpus of documents; 0 takes one per CPU. It does not change the
            token ids.
    """

    corpus: str = "shakespeare"
    tokenizer: str = "char"
    vocab_size: int = 8192
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    val_corpus: str | None = None
    test_corpus: str | None = None
    cache_dir: str | None = None
    split_by: str = "auto"
    text_field: str = "text"
    bpe_sample_bytes: int = 100_000_000
    prepare_processes: int = 0

    def __post_init__(self) -> None:
        self._require_types()
        for name in ("corpus", "val_corpus", "test_corpus", "tokenizer", "cache_dir", "text_field"):
            if getattr(self, name) == "":
                raise UserError(f"data.{name} is empty: give a value, or leave it out")
        if self.split_by not in SPLIT_BY:
            raise UserError(f"data.split_by is {self.split_by}: expected {', '.join(SPLIT_BY[:-1])} or {SPLIT_BY[-1]}")
        require_at_least(
            "data", bpe_sample_bytes=(self.bpe_sample_bytes, 1), prepare_processes=(self.prepare_processes, 0)
        )
        require_processes("data.prepare_processes", self.prepare_processes)

    def _require_types(self) -> None:
        # A checkpoint's config comes here without a parser before it.
        kinds = {name: kind | int if kind is float else kind for name, kind in get_type_hints(type(self)).items()}
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        wrong = [
            f"data.{name} is {shorten(repr(value))}, but must be {getattr(kinds[name], '__name__', kinds[name])}"
            for name, value in values.items()
            # True is an int to Python, and no number of entries.
            if not isinstance(value, kinds[name]) or isinstance(value, bool)
        ]
        if wrong:
            raise UserError(*wrong)

    @property
    def cache(self) -> Path:
        """The cache folder: `cache_dir`, else ``$TINYTF_CACHE``, else ``$XDG_CACHE_HOME/tinytf``, else ~/.cache."""
        return cache_root(self.cache_dir)


@dataclass(frozen=True)
class PreparedCorpus:
    """Token ids on disk, the tokenizer they were made with, and what they are.

    Attributes:
        fingerprint: plain types only; it goes into every checkpoint.
        chat_template: of the tokenizer, if it came with one or conversations were tokenized by it.
    """

    tokenizer: Tokenizer
    store: TokenStore
    fingerprint: dict[str, Any]
    chat_template: str | None = None


def cache_root(cache_dir: str | Path | None) -> Path:
    """The cache folder: as given, else ``$TINYTF_CACHE``, else ``$XDG_CACHE_HOME/tinytf``, else ``~/.cache/tinytf``."""
    if cache_dir is not None:
        return user_path(cache_dir, what="data.cache_dir")
    if os.environ.get("TINYTF_CACHE"):
        return user_path(os.environ["TINYTF_CACHE"], what="TINYTF_CACHE")
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", what="XDG_CACHE_HOME") / "tinytf"


def require_processes(key: str, count: int) -> None:
    """Refuse more processes than the machine can be expected to hold, before any is started.

    A process that tokenizes, or reads batches, takes about 60 MB of its own; 100,000 brought a machine of 24 GB down.
    """
    most = max(64, 8 * usable_cores())
    if count > most:
        raise UserError(f"{key} is {count}, but must be at most {most} on a machine with {usable_cores()} usable cores")


def digest(values: dict[str, Any]) -> str:
    """A name for plain values: the same ones give the same name, on every machine."""
    # JSON and not repr: floats and texts are written alike by every version of Python.
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@contextmanager
def cache_write(path: Path) -> Iterator[BinaryIO]:
    """`atomic_write` into the cache; UserError if its folder cannot be written or the disk is full."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        with atomic_write(path) as file:
            yield file
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            raise UserError(
                f"the cache cannot be written at {path} ({error.strerror}): "
                "make room, or set --data.cache_dir or TINYTF_CACHE to another folder"
            ) from error
        raise


def _remove_abandoned(folder: Path) -> None:
    # By age, not by process id: the folder may be shared by machines that do not see each other's processes.
    for leftover in folder.glob(".*.tmp"):
        try:
            if time.time() - leftover.stat().st_mtime > ABANDONED_AFTER:
                leftover.unlink()
        except OSError:  # Another process was first, or it is another user's to remove.
            continue
