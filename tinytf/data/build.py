"""Steps 1 to 3 as one: a corpus becomes token ids on disk, or is found to be there already."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from filelock import FileLock, Timeout
from tokenizers import Tokenizer

from tinytf.data.config import OF_BASE, CorpusConfig, PreparedCorpus, digest
from tinytf.data.sources import find_files
from tinytf.data.sources.builtin import BUILTIN
from tinytf.data.sources.hub import HUB
from tinytf.data.tokenizer import tokenizer_sha256
from tinytf.data.tokens.document_corpus import DocumentBuild
from tinytf.data.tokens.store import open_store
from tinytf.data.tokens.text_corpus import prepare_text
from tinytf.errors import UserError
from tinytf.utils.text import HIDDEN

log = logging.getLogger(__name__)


def prepare(
    config: CorpusConfig,
    given: Tokenizer | None = None,
    known: dict[str, Any] | None = None,
    chat_template: str | None = None,
) -> PreparedCorpus:
    """Tokenize a corpus, or find it tokenized.

    Plain text is read once in every call, so that a changed file is always seen. A corpus of many documents may be too
    large for that, and is known by its files' names, sizes and times. One process at a time works on one corpus; the
    others wait for it and find it done.

    Args:
        given: a tokenizer to use in place of the one the config asks for, as when a checkpoint brings its own.
        known: the fingerprint of what was prepared before, by which it is found again if the config's address lacks
            what a checkpoint does not store: user, password, query.
        chat_template: of the given tokenizer, by which conversations become text.

    Raises:
        UserError: for input that cannot be used; the message names file and place.
    """
    if given is None and config.tokenizer == OF_BASE:
        raise UserError(
            f"data.tokenizer {OF_BASE}: it is that of model.base, which is not here: give its tokenizer.json"
        )
    with _one_at_a_time(config):
        if found := _find_prepared(config, given, known):
            return replace(found, chat_template=chat_template)
        if is_split_by_document(config):
            return DocumentBuild(config, given, chat_template).run()
        return replace(prepare_text(config, given), chat_template=chat_template)


def locate_example(
    config: CorpusConfig, given: Tokenizer | None, chat_template: str | None, split: str, number: int
) -> str:
    """File and line, or row, of an example by its place in a split."""
    return DocumentBuild(config, given, chat_template).locate(split, number)


def _find_prepared(
    config: CorpusConfig, tokenizer: Tokenizer | None, known: dict[str, Any] | None
) -> PreparedCorpus | None:
    """What is prepared under a fingerprint, if an address cannot be read as it is stored."""
    addresses = (config.corpus, config.val_corpus, config.test_corpus)
    if tokenizer is None or known is None or not any(HIDDEN in address for address in addresses if address):
        return None
    fractions = {"val_fraction": None if config.val_corpus else config.val_fraction,
                 "test_fraction": config.test_fraction}  # fmt: skip
    sha256, split = known.get("sha256"), known.get("split")
    if not (isinstance(sha256, str) and isinstance(split, dict) and fractions.items() <= split.items()):
        return None  # Another part of the text is asked for, or the checkpoint does not say which it had.
    records = {"records": known["records"]} if "records" in known else {}
    key = digest({"sha256": sha256, "split": split, "tokenizer_sha256": tokenizer_sha256(tokenizer), **records})
    store = open_store(config.cache / "tokens" / key, key)
    return PreparedCorpus(tokenizer, store, known) if store else None


@contextmanager
def _one_at_a_time(config: CorpusConfig) -> Iterator[None]:
    locks = config.cache / "locks"
    name = digest(asdict(config))[:32]
    # A file of its own: to open the lock's file empties it.
    lock, holder = FileLock(locks / f"{name}.lock"), locks / f"{name}.pid"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            pid = holder.read_text() if holder.is_file() else "unknown"
            log.info("process %s is preparing %s: waiting for it (Ctrl-C ends the wait)", pid, config.corpus)
            lock.acquire()  # Asks again every 50 ms, and sleeps in between: a signal is obeyed at once.
        holder.write_text(str(os.getpid()))
    except (OSError, NotImplementedError) as error:
        # A cache that cannot be written may hold all that is needed; if not, the first write says so in one line.
        # Without a lock two processes do the same work twice, and the later rename of equal files wins.
        read_only = isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        log.log(
            logging.DEBUG if read_only else logging.WARNING,
            "no lock can be taken in %s (%s): do not prepare one corpus there by two commands at once", locks, error,
        )  # fmt: skip
    try:
        yield
    finally:
        lock.release()


def is_split_by_document(config: CorpusConfig) -> bool:
    """Whether each document has a split of its own: as set, else if the corpus holds records.

    Plain text files, few and long as they are, are split at a position: of five books none might fall into a tenth
    that is drawn by document.
    """
    if config.split_by == "document" and config.corpus in BUILTIN:
        raise UserError(f"data.split_by document: {config.corpus} is one text; leave it out")
    if config.split_by == "position" and config.corpus.startswith(HUB):
        raise UserError(f"data.split_by position: {config.corpus} holds documents, which are split one by one")
    if config.split_by != "auto" or config.corpus in BUILTIN:
        return config.split_by == "document"
    return config.corpus.startswith(HUB) or any(file.kind != "text" for file in find_files(config.corpus, config.cache))


def is_one_text(config: CorpusConfig) -> bool:
    """Whether a corpus is a single text by its name; what holds records is only known once they are read."""
    if config.corpus in BUILTIN:
        return True
    if "://" in config.corpus:
        return False
    return [file.kind for file in find_files(config.corpus, config.cache)] == ["text"]
