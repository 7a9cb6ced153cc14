"""A corpus of documents on its way to token ids: found in the cache, or tokenised part by part and put in order."""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinytf.data.cache import digest, written_whole
from tinytf.data.files import NAMES, files_of
from tinytf.data.gather import Source, gather
from tinytf.data.hub import PREFIX, shards_of
from tinytf.data.parts import FORMAT, Part
from tinytf.data.pool import Work, tokenise
from tinytf.data.records import Slice, slices_of
from tinytf.data.settings import SPLITS, Prepared, TextSettings
from tinytf.data.splits import Shares, shares_of
from tinytf.data.store import TokenStore, ids_dtype, open_store, separator_of
from tinytf.data.tokenizer import END_OF_TEXT, character_tokenizer, tokenizer_from_file, tokenizer_sha256
from tinytf.data.training_bpe import kept, train_on_slices
from tinytf.errors import UserError
from tinytf.utils.machine import usable_cores

log = logging.getLogger(__name__)


def is_by_document(settings: TextSettings, cache: Path) -> bool:
    """Whether a corpus is split document by document: as set, else where its files hold records.

    Plain text files, few and long as they are, keep the split at the text's end: of five books none might fall into
    a tenth that is drawn by document.

    Raises:
        UserError: for a setting that is none, or does not go with the corpus.
    """
    if settings.split_by not in SPLITS:
        raise UserError(f"data.split_by is {settings.split_by}: it must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    if settings.bpe_sample_bytes < 1:
        raise UserError(f"data.bpe_sample_bytes is {settings.bpe_sample_bytes}: it must be at least 1")
    if settings.prepare_processes < 0:
        raise UserError(f"data.prepare_processes is {settings.prepare_processes}: it must be at least 0")
    if settings.split_by == "document" and settings.corpus in NAMES:
        raise UserError(f"data.split_by document: {settings.corpus} is one text; leave it out")
    if settings.split_by == "tail" and settings.corpus.startswith(PREFIX):
        raise UserError(f"data.split_by tail: {settings.corpus} holds documents, which are split one by one")
    if settings.split_by != "auto" or settings.corpus in NAMES:
        return settings.split_by == "document"
    return settings.corpus.startswith(PREFIX) or any(file.kind != "text" for file in files_of(settings.corpus, cache))


@dataclass(frozen=True)
class Known:
    """What reading a corpus to its end told of it.

    Attributes:
        sha256: of its parts' sums.
        documents, bytes: how many, and their UTF-8.
        alphabet: the characters that occur, sorted.
    """

    sha256: str
    documents: int
    bytes: int
    alphabet: str


@dataclass
class Listed:
    """A corpus as its files stand now.

    Attributes:
        into: the one split that all of it is for; None where it is divided.
    """

    corpus: str
    into: str | None
    slices: list[Slice]
    text_field: str
    cache: Path

    @cached_property
    def key(self) -> str:
        pieces = [piece.identity() for piece in self.slices]
        return digest({"format": FORMAT, "slices": pieces, "text_field": self.text_field})

    @property
    def _path(self) -> Path:
        return self.cache / "corpora" / f"{self.key}.json"

    def known(self) -> Known | None:
        """What an earlier reading told; None where there was none."""
        try:
            return Known(**json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def learn(self, parts: list[Part]) -> Known:
        """Sum up the parts, for the next time."""
        if empty := sum(part.empty for part in parts):
            log.warning("corpus %s: %d of %d documents are empty, and left out", self.corpus, empty,
                        empty + sum(part.documents for part in parts))  # fmt: skip
        known = Known(
            digest({"parts": [part.sha256 for part in parts]}),
            sum(part.documents for part in parts), sum(part.bytes for part in parts), _joined(parts),
        )  # fmt: skip
        if not known.documents:
            raise UserError(f"corpus {self.corpus}: there is no text in it at all")
        with written_whole(self._path) as file:
            file.write(json.dumps(asdict(known)).encode())
        return known


def prepare_documents(settings: TextSettings, given: Tokenizer | None, cache: Path) -> Prepared:
    """As `tinytf.data.prepare.prepare`, for a corpus that is split by document."""
    shares = shares_of(
        settings.val_fraction, settings.test_fraction, bool(settings.val_corpus), bool(settings.test_corpus)
    )
    listed = _listed(settings, cache)
    tokenizer = given or _chosen(settings, listed, shares, cache)
    known = [each.known() for each in listed]
    if found := _found(settings, listed, known, tokenizer, cache):
        return found
    work = _work(settings, tokenizer, cache)
    with _alone(work.folder):
        known = [each.known() for each in listed]
        if found := _found(settings, listed, known, tokenizer, cache):
            return found
        return _made(settings, listed, work, shares, tokenizer, cache)


def _listed(settings: TextSettings, cache: Path) -> list[Listed]:
    corpora = [(settings.corpus, None), (settings.val_corpus, "val"), (settings.test_corpus, "test")]
    return [
        Listed(corpus, into, _slices(corpus, cache), settings.text_field, cache) for corpus, into in corpora if corpus
    ]


def _slices(corpus: str, cache: Path) -> list[Slice]:
    if corpus in NAMES:
        raise UserError(f"corpus {corpus}: it is one text, and does not go with a corpus that is split by document")
    files = shards_of(corpus) if corpus.startswith(PREFIX) else files_of(corpus, cache)
    return [piece for file in files for piece in slices_of(file)]


def _chosen(settings: TextSettings, listed: list[Listed], shares: Shares, cache: Path) -> Tokenizer | None:
    """The tokenizer; None for an alphabet that is known only when all is read."""
    if settings.tokenizer == "char":
        known = [each.known() for each in listed]
        return _by_character([each for each in known if each]) if all(known) else None
    if settings.tokenizer != "bpe":
        return tokenizer_from_file(settings.tokenizer)
    what = {"corpus": listed[0].key, "shares": asdict(shares), "vocab_size": settings.vocab_size,
            "sample_bytes": settings.bpe_sample_bytes, "trained": 1}  # fmt: skip
    return kept(
        cache / "tokenizers" / f"bpe-{digest(what)}.json",
        lambda: train_on_slices(
            listed[0].slices, settings.text_field, shares, settings.vocab_size, settings.bpe_sample_bytes
        ),
    )


def _by_character(known: list[Known]) -> Tokenizer:
    return character_tokenizer(_joined(known), end_of_text=True)


def _joined(several: Sequence[Part | Known]) -> str:
    return "".join(sorted(set().union(*(each.alphabet for each in several))))


def _work(settings: TextSettings, tokenizer: Tokenizer | None, cache: Path) -> Work:
    if tokenizer is not None:
        separator_of(tokenizer)  # Before the long work, not after it.
    name = tokenizer_sha256(tokenizer)[:32] if tokenizer else "code-points"
    dtype = ids_dtype(tokenizer) if tokenizer else "uint32"
    return Work(cache / "parts" / name, settings.text_field, tokenizer.to_str() if tokenizer else None, dtype)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time: another that wants the same waits, and finds it done. Dying opens the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is tokenising into %s: waiting for it", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _made(
    settings: TextSettings, listed: list[Listed], work: Work, shares: Shares, tokenizer: Tokenizer | None, cache: Path
) -> Prepared:
    known, sources = [], []
    for each in listed:
        processes = settings.prepare_processes or usable_cores()
        parts = tokenise(work, each.slices, processes, f"tokenising {each.corpus}")
        known.append(each.learn(parts))
        sources += [
            Source(work.files(piece), part.dtype, each.into or (None if shares.divides else "train"))
            for piece, part in zip(each.slices, parts, strict=True)
        ]
    table = None
    if tokenizer is None:
        tokenizer = _by_character(known)
        table = _table(tokenizer)
    names = tuple(name for name in ("train", "val", "test") if name in shares.names() or name in
                  [each.into for each in listed])  # fmt: skip
    identity = _identity(settings, known, tokenizer)
    key = digest(identity)
    folder = cache / "tokens" / key
    if (store := open_store(folder, key)) is None:
        store = gather(folder, key, sources, shares, names, separator_of(tokenizer), ids_dtype(tokenizer), table)
    for source in sources:
        source.files.remove()
    return _prepared(settings, known, identity, tokenizer, store)


def _table(tokenizer: Tokenizer) -> npt.NDArray[np.uint32]:
    """The id of each code point, [0x110000]."""
    table = np.zeros(0x110000, dtype=np.uint32)
    for character, number in tokenizer.get_vocab(with_added_tokens=False).items():
        if character != END_OF_TEXT:
            table[ord(character)] = number
    return table


def _found(
    settings: TextSettings, listed: list[Listed], known: list[Known | None], tokenizer: Tokenizer | None, cache: Path
) -> Prepared | None:
    """The store of a corpus that was read before, if it is there."""
    seen = [each for each in known if each]
    if len(seen) < len(listed):
        return None
    tokenizer = tokenizer or _by_character(seen)
    identity = _identity(settings, seen, tokenizer)
    store = open_store(cache / "tokens" / digest(identity), digest(identity))
    return _prepared(settings, seen, identity, tokenizer, store) if store else None


def _identity(settings: TextSettings, known: list[Known], tokenizer: Tokenizer) -> dict[str, Any]:
    """What the token ids are a function of."""
    named = iter(known)
    return {
        "sha256": next(named).sha256,
        "split": {
            "by": "document",
            "val_fraction": None if settings.val_corpus else settings.val_fraction,
            "test_fraction": settings.test_fraction,
            "val_sha256": next(named).sha256 if settings.val_corpus else None,
            "test_sha256": next(named).sha256 if settings.test_corpus else None,
        },
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }


def _prepared(
    settings: TextSettings, known: list[Known], identity: dict[str, Any], tokenizer: Tokenizer, store: TokenStore
) -> Prepared:
    _require_documents(settings, known[0], store)
    fingerprint = {
        "corpus": settings.corpus,
        **identity,
        "bytes": known[0].bytes,
        "documents": known[0].documents,
        "split_bytes": dict(store.bytes),
        "split_tokens": dict(store.tokens),
        "split_documents": dict(store.documents or {}),
        "tokenizer": settings.tokenizer,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    return Prepared(tokenizer, store, fingerprint)


def _require_documents(settings: TextSettings, known: Known, store: TokenStore) -> None:
    for name, count in (store.documents or {}).items():
        if not count:
            raise UserError(
                f"the {name} split is empty: none of the {known.documents:,} documents of {settings.corpus} fell into "
                "it; give more documents, another data.val_fraction or data.test_fraction, or data.split_by tail"
            )
