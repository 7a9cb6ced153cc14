"""3. Tokens of a corpus of documents, which is known by its files and split document by document."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinytf.data.config import CorpusConfig, PreparedCorpus, cache_write, digest
from tinytf.data.documents import Shard, kind_of_corpus, read_documents, shards_of
from tinytf.data.examples.chat import Chat, read_chat_template
from tinytf.data.examples.records import KINDS, Records
from tinytf.data.sources import find_files
from tinytf.data.sources.builtin import BUILTIN
from tinytf.data.sources.files import byte_progress
from tinytf.data.sources.hub import HUB, hub_files
from tinytf.data.splits import SPLITS, SplitFractions, split_fractions
from tinytf.data.tokenizer import END_OF_TEXT, character_tokenizer, tokenizer_from_file, tokenizer_sha256
from tinytf.data.tokens.shards import COUNTS, ShardStats, ShardTokenizer
from tinytf.data.tokens.store import TokenStore, describe_store, ids_dtype, open_store, separator_of
from tinytf.data.tokens.train_bpe import cached_tokenizer, train_on_shards
from tinytf.errors import UserError
from tinytf.utils.files import user_path
from tinytf.utils.machine import usable_cores
from tinytf.utils.text import public

NO_CHARACTER = 0x110000
"""Stands after each document in shards of code points; it becomes the end-of-text id with the others."""

COPIED_BYTES = 1 << 22
"""A multiple of every dtype's size."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusStats:
    """What reading a corpus to its end found; cached under the names, sizes and times of its files."""

    sha256: str
    documents: int
    bytes: int
    alphabet: str


@dataclass
class CorpusFiles:
    """One of the corpora of a config, as its files are now.

    Args:
        split: the one split that all of it is for; None if it is divided.
        chat_template: by which conversations become text.
    """

    corpus: str
    split: str | None
    shards: list[Shard]
    text_field: str
    cache: Path
    chat_template: str | None

    @cached_property
    def key(self) -> str:
        """A name for the files as they are, and for how they are read."""
        shards = [shard.identity() for shard in self.shards]
        template = {"chat_template": self.chat_template} if self.chat_template else {}
        return digest({"format": 2, "shards": shards, "text_field": self.text_field, **template})

    @cached_property
    def kind(self) -> str:
        """What its records hold (`examples.records.KINDS`): as the first one says, which is asked once."""
        path = self.cache / "corpora" / f"{self.key}.kind"
        try:
            kind = path.read_text(encoding="utf-8")
        except OSError:
            kind = ""
        if kind not in KINDS:
            kind = kind_of_corpus(self.shards, self.text_field)
            with cache_write(path) as file:
                file.write(kind.encode())
        return kind

    @property
    def _path(self) -> Path:
        return self.cache / "corpora" / f"{self.key}.json"

    def stats(self) -> CorpusStats | None:
        """What an earlier reading found; None if there was none."""
        try:
            return CorpusStats(**json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def save_stats(self, shards: list[ShardStats]) -> CorpusStats:
        """Sum up the shards, for the next time."""
        documents = sum(sum(shard.documents.values()) for shard in shards)
        if empty := sum(shard.empty for shard in shards):
            log.warning("corpus %s: %d of %d documents are empty, and left out", self.corpus, empty, documents + empty)
        if not documents:
            raise UserError(f"corpus {self.corpus}: there is no text in it at all")
        stats = CorpusStats(
            digest({"shards": [shard.sha256 for shard in shards]}),
            documents,
            sum(sum(shard.bytes.values()) for shard in shards),
            "".join(sorted(set().union(*(shard.alphabet for shard in shards)))),
        )
        with cache_write(self._path) as file:
            file.write(json.dumps(asdict(stats)).encode())
        return stats


class DocumentBuild:
    """The preparation of a corpus whose documents are split one by one.

    Args:
        config: what to prepare.
        given: a tokenizer to use in place of the one the config asks for.
        chat_template: of that tokenizer.
    """

    def __init__(self, config: CorpusConfig, given: Tokenizer | None, chat_template: str | None = None) -> None:
        self.config, self.cache = config, config.cache
        self.fractions = split_fractions(
            config.val_fraction, config.test_fraction, bool(config.val_corpus), bool(config.test_corpus)
        )
        corpora = [(config.corpus, None), (config.val_corpus, "val"), (config.test_corpus, "test")]
        if given is None and config.tokenizer not in ("char", "bpe"):
            chat_template = read_chat_template(user_path(config.tokenizer, what="data.tokenizer").parent)
        self.files = [
            CorpusFiles(corpus, split, self._shards(corpus), config.text_field, self.cache, chat_template)
            for corpus, split in corpora
            if corpus
        ]
        self.chat_template = chat_template if given or self.kind == "messages" else None
        self.records = Records(config.text_field, self.kind)
        if self.kind == "messages" and self.chat_template is None:
            raise UserError(
                f"corpus {config.corpus}: it holds conversations (messages), which a chat template turns into text, "
                f"and the tokenizer {config.tokenizer} has none: set data.tokenizer to a tokenizer.json with a "
                "chat_template.jinja or tokenizer_config.json beside it, or give prompt and completion"
            )
        self.tokenizer = given or self._choose_tokenizer()
        if self.kind == "messages" and self.chat_template and self.tokenizer:
            try:
                self.records = replace(self.records, chat=Chat.of(self.chat_template, self.tokenizer))
            except UserError as error:
                raise UserError(
                    f"data.tokenizer {config.tokenizer}: {error}: mend the template, or give prompt and completion in "
                    "place of messages"
                ) from error

    @property
    def kind(self) -> str:
        """What the records hold; val_corpus and test_corpus are read as the corpus is."""
        return self.files[0].kind

    def _shards(self, corpus: str) -> list[Shard]:
        if corpus in BUILTIN:
            raise UserError(f"corpus {corpus}: it is one text, and does not go with a corpus that is split by document")
        files = hub_files(corpus) if corpus.startswith(HUB) else find_files(corpus, self.cache)
        return [shard for file in files for shard in shards_of(file)]

    def _choose_tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None for an alphabet that is known only when all is read."""
        config = self.config
        if config.tokenizer == "char":
            stats = [files.stats() for files in self.files]
            return _alphabet([each for each in stats if each]) if all(stats) else None
        if config.tokenizer != "bpe":
            return tokenizer_from_file(config.tokenizer)
        key = {"corpus": self.files[0].key, "fractions": asdict(self.fractions), "vocab_size": config.vocab_size,
               "sample_bytes": config.bpe_sample_bytes, "trained": 1}  # fmt: skip
        return cached_tokenizer(
            self.cache / "tokenizers" / f"bpe-{digest(key)}.json",
            lambda: train_on_shards(
                self.files[0].shards, self.records, self.fractions, config.vocab_size, config.bpe_sample_bytes
            ),
        )

    def run(self) -> PreparedCorpus:
        """Find the store, or tokenize the shards that are not finished and put them together in their order."""
        known = [files.stats() for files in self.files]
        stats = [each for each in known if each]
        # All known: the files are as they were, and nothing of them needs to be read.
        if len(stats) == len(known):
            tokenizer = self.tokenizer or _alphabet(stats)
            key = digest(self._identity(stats, tokenizer))
            store = open_store(self.cache / "tokens" / key, key)
            if store:
                return self._prepared(stats, tokenizer, store)
        return self._tokenize()

    def _tokenize(self) -> PreparedCorpus:
        fractions = self.fractions if self.fractions.divides else SplitFractions(0.0, 0.0)
        tokenizer = self.tokenizer
        separator: int | None = None
        if self.kind != "messages":  # Asked before the long work, not after it.
            separator = separator_of(tokenizer) if tokenizer else NO_CHARACTER
        name = f"{tokenizer_sha256(tokenizer)[:32] if tokenizer else 'code-points'}-{fractions.val}-{fractions.test}"
        base = ShardTokenizer(
            self.cache / "shards" / name, self.records, tokenizer.to_str() if tokenizer else None, separator,
            ids_dtype(tokenizer) if tokenizer else "uint32", fractions,
        )  # fmt: skip
        processes = self.config.prepare_processes or usable_cores()
        stats, work, found = [], [], []
        for files in self.files:
            shards = replace(base, split=files.split)
            done = shards.tokenize_all(files.shards, processes, f"tokenizing {public(files.corpus)}")
            stats.append(files.save_stats(done))
            work.append(shards)
            found.append(done)
        table = None
        # The alphabet is known now: no document is read a second time, code points become ids by a table.
        if tokenizer is None:
            tokenizer = _alphabet(stats)
            table = _id_table(tokenizer)
        key = digest(self._identity(stats, tokenizer))
        folder = self.cache / "tokens" / key
        store = open_store(folder, key)
        if store is None:
            shard_stats = [one for done in found for one in done]

            def parts(ending: str, dtype: str) -> dict[str, list[tuple[Path, str]]]:
                files = {
                    name: [
                        (shards.path(shard, name + ending), dtype)
                        for shards, files, done in zip(work, self.files, found, strict=True)
                        for shard, one in zip(files.shards, done, strict=True)
                        if name in one.tokens
                    ]
                    for name in SPLITS
                }
                return {(name + ending).removesuffix(".bin"): paths for name, paths in files.items() if paths}

            tokens = concatenate(folder, key, ids_dtype(tokenizer), parts(".bin", base.dtype), table)
            count = {what: {name: sum(getattr(one, what).get(name, 0) for one in shard_stats) for name in tokens}
                     for what in COUNTS}  # fmt: skip
            if self.kind == "text":
                store = describe_store(folder, key, tokenizer, tokens, count["bytes"], count["documents"])
            else:
                for ending, dtype in ((".learned.bin", "uint8"), (".examples.bin", "uint32")):
                    concatenate(folder, key, dtype, parts(ending, dtype), None)
                store = describe_store(folder, key, tokenizer, tokens, count["learned_bytes"], count["documents"],
                                       examples=count["examples"], learned_tokens=count["learned_tokens"])  # fmt: skip
        prepared = self._prepared(stats, tokenizer, store)
        # Last: a kill before this finds the shards again, and a store that is not described is none.
        for shards, files in zip(work, self.files, strict=True):
            shards.remove(files.shards)
        return prepared

    def _identity(self, stats: list[CorpusStats], tokenizer: Tokenizer) -> dict[str, Any]:
        """What the token ids are a function of."""
        config, sums = self.config, {files.split: each.sha256 for files, each in zip(self.files, stats, strict=True)}
        return {
            "sha256": sums[None],
            "split": {
                "by": "document",
                "val_fraction": None if config.val_corpus else config.val_fraction,
                "test_fraction": config.test_fraction,
                "val_sha256": sums.get("val"),
                "test_sha256": sums.get("test"),
            },
            "tokenizer_sha256": tokenizer_sha256(tokenizer),
            # Not for texts, whose stores keep the names that they have.
            **({"records": self.records.identity()} if self.kind != "text" else {}),
        }

    def locate(self, split: str, number: int) -> str:
        """Where an example of a split lies, by its place in the store: read again for it, which a message is worth."""
        fractions = self.fractions if self.fractions.divides else SplitFractions(0.0, 0.0)
        for files in self.files:
            for shard in files.shards if files.split in (None, split) else ():
                for document in read_documents(shard, self.records):
                    if (files.split or fractions.split_of(hashlib.sha256(document.identity).digest())) == split:
                        number -= len(document.examples)
                        if number < 0:
                            return str(document.name)
        return f"an example of the {split} split"

    def _prepared(self, stats: list[CorpusStats], tokenizer: Tokenizer, store: TokenStore) -> PreparedCorpus:
        for name, count in (store.documents or {}).items():
            if not count:
                # Text files are divided so if the user asks for it; records are in any case.
                position = ", or data.split_by position" if self.config.split_by == "document" else ""
                raise UserError(
                    f"the {name} split is empty: none of the {stats[0].documents:,} documents of {self.config.corpus} "
                    f"fell into it; give more documents, or another data.val_fraction or data.test_fraction{position}"
                )
        fingerprint = {
            "corpus": public(self.config.corpus),
            **self._identity(stats, tokenizer),
            "bytes": stats[0].bytes,
            "documents": stats[0].documents,
            "split_bytes": dict(store.bytes),
            "split_tokens": dict(store.tokens),
            "split_documents": dict(store.documents or {}),
            "tokenizer": self.config.tokenizer,
            "vocab_size": tokenizer.get_vocab_size(),
            "start_token": store.start_token,
        }
        if store.examples and store.learned_tokens:
            fingerprint |= {"split_examples": dict(store.examples), "split_learned_tokens": dict(store.learned_tokens)}
        return PreparedCorpus(tokenizer, store, fingerprint, self.chat_template)


def _alphabet(stats: list[CorpusStats]) -> Tokenizer:
    return character_tokenizer(set().union(*(each.alphabet for each in stats)), end_of_text=True)


def _id_table(tokenizer: Tokenizer) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The id of each code point, and of `NO_CHARACTER`."""
    table = np.zeros(NO_CHARACTER + 1, dtype=np.uint32)
    for character, number in tokenizer.get_vocab(with_added_tokens=False).items():
        table[NO_CHARACTER if character == END_OF_TEXT else ord(character)] = number
    return table


def concatenate(
    folder: Path, key: str, dtype: str, parts: dict[str, list[tuple[Path, str]]], table: npt.NDArray[np.uint32] | None
) -> dict[str, int]:
    """Write each split from the ids in files, one after the other; returns the number of ids per split.

    Args:
        folder, key: of the store.
        dtype: of the store's ids.
        parts: of each split, in order, the files and the dtype of their ids.
        table: the id of each number in the files, if they hold code points.
    """
    tokens = {}
    total = sum(path.stat().st_size for files in parts.values() for path, _ in files)
    with byte_progress("writing token ids", total) as progress:
        for name, files in parts.items():
            tokens[name] = 0
            with cache_write(folder / f"{name}.bin") as output:
                for path, kind in files:
                    with path.open("rb") as file:
                        for block in iter(lambda file=file: file.read(COPIED_BYTES), b""):  # type: ignore[misc]
                            ids = np.frombuffer(block, dtype=kind)
                            ids = ids if table is None else table[ids]
                            output.write(ids.astype(dtype, copy=False).tobytes())
                            tokens[name] += len(ids)
                            progress.update(len(block))
    return tokens
