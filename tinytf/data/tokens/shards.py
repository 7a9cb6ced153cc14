"""3. Tokens: shards of documents, tokenized in parallel. A finished shard is found again after a kill."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinytf.data.config import cache_write, digest
from tinytf.data.documents import Shard, code_points, read_documents
from tinytf.data.examples.chat import Example, special_encoder
from tinytf.data.examples.records import Document, Records
from tinytf.data.sources.files import byte_progress
from tinytf.data.splits import SplitFractions
from tinytf.data.tokenizer import tokenizer_from_text
from tinytf.data.tokens.encode import Encoder, encoder
from tinytf.errors import RunError, UserError

FORMAT = 3
FILES = (".bin", ".learned.bin", ".examples.bin")
"""Of a split of prompts and completions: ids; whether each is learned (uint8); of each example its ids and those before
the first that is learned (uint32). Of a split of texts the first alone."""
COUNTS = ("documents", "bytes", "tokens", "examples", "learned_bytes", "learned_tokens")

THREADS = "TOKENIZERS_PARALLELISM"
"""The tokenizers library reads it at every call."""

SPOOLED_BYTES = 64 << 20
"""Ids of one document in memory; a longer one waits on disk."""

TextEncoder = Callable[[str, object], npt.NDArray[np.uint32]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardStats:
    """What a finished shard holds.

    Attributes:
        sha256: of its documents' checksums, in order.
        documents, bytes, tokens: per split; bytes of UTF-8, without the separators.
        examples, learned_bytes, learned_tokens: of prompts and completions, per split; those of completions.
        empty: documents without text, which are left out.
        alphabet: the characters that occur, sorted.
    """

    sha256: str
    documents: dict[str, int]
    bytes: dict[str, int]
    tokens: dict[str, int]
    empty: int
    alphabet: str
    examples: dict[str, int] = field(default_factory=dict)
    learned_bytes: dict[str, int] = field(default_factory=dict)
    learned_tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardTokenizer:
    """Tokenizes shards into a folder, each under a name of its own. Plain values: it travels to other processes.

    Args:
        folder: where to; one per tokenizer and fractions.
        records: how they are read.
        tokenizer: as JSON; None writes code points, for an alphabet that is not known before all is read.
        separator: id that stands after each document; None if a chat template says itself where they end.
        dtype: of the ids.
        fractions: decide each document's split.
        split: the one split for all documents, in place of the fractions.
    """

    folder: Path
    records: Records
    tokenizer: str | None
    separator: int | None
    dtype: str
    fractions: SplitFractions
    split: str | None = None

    def path(self, shard: Shard, ending: str) -> Path:
        """A file of a shard: ``json`` (its `ShardStats`, written last), or of a split, such as ``train.bin``."""
        records = self.records.identity()
        name = digest({"format": FORMAT, "shard": shard.identity(), **records, "into": self.split})
        return self.folder / f"{name[:32]}.{ending}"

    def finished(self, shard: Shard) -> ShardStats | None:
        """What a shard holds, if it was finished."""
        try:
            return ShardStats(**json.loads(self.path(shard, "json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def tokenize(self, shard: Shard, encode: Encoder | None, stop: Path | None = None) -> ShardStats:
        """Tokenize a shard. Memory holds a block of text and its ids, not the shard.

        Raises:
            StoppedError: once there is a file ``stop``; it is looked for at every block.
        """
        seen = np.zeros(0x110000, dtype=bool)
        names = [self.split] if self.split else list(self.fractions.names())
        endings = FILES[:1] if self.records.kind == "text" else FILES
        counts = {name: Counter[str]() for name in names}
        sums, empty = hashlib.sha256(), 0
        end = np.array([self.separator or 0], dtype=self.dtype).tobytes()
        encode_text = self._text_encoder(encode)
        with ExitStack() as files, tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES) as pending:
            outputs = {name: [files.enter_context(cache_write(self.path(shard, name + ending))) for ending in endings]
                       for name in names}  # fmt: skip
            for document in read_documents(shard, self.records):
                read = _Reading(document, seen, stop)
                # The split is known once the whole document is read: until then its ids wait here.
                pending.seek(0)
                pending.truncate()
                count = 0
                for ids in () if document.examples else _encoded(encode, read, document.name):
                    count += len(ids)
                    pending.write(ids.astype(self.dtype, copy=False).tobytes())
                read.finish()
                # Without text it would be an end of document alone, which teaches a model to stop at once.
                if not read.bytes:
                    empty += 1
                    continue
                name = self.split or self.fractions.split_of(read.sha256.digest())
                for example in document.examples:
                    counts[name] += self._write(example, encode_text, outputs[name], document.name)
                if not document.examples:
                    pending.seek(0)
                    shutil.copyfileobj(pending, outputs[name][0])
                    outputs[name][0].write(end)
                    counts[name]["tokens"] += count + 1
                counts[name] += Counter(documents=1, bytes=read.bytes)
                sums.update(read.sha256.digest())
            shard.file.require_unchanged()
        alphabet = "".join(map(chr, np.flatnonzero(seen).tolist()))
        by_count = {what: {name: counts[name][what] for name in names} for what in COUNTS}
        stats = ShardStats(sha256=sums.hexdigest(), empty=empty, alphabet=alphabet, **by_count)
        with cache_write(self.path(shard, "json")) as file:
            file.write(json.dumps(asdict(stats)).encode())
        return stats

    def _write(self, example: Example, encode: TextEncoder, outputs: list[Any], where: object) -> Counter[str]:
        ids, learned = encode_example(example, encode, self.separator, where)
        lengths = np.array([len(ids), np.argmax(learned)], dtype=np.uint32)
        written: list[npt.NDArray[Any]] = [ids.astype(self.dtype), learned, lengths]
        for output, values in zip(outputs, written, strict=True):
            output.write(values.tobytes())
        return Counter(
            examples=1, tokens=len(ids), learned_tokens=int(learned.sum()),
            learned_bytes=sum(len(text.encode()) for text, learns in example if learns),
        )  # fmt: skip

    def tokenize_all(self, shards: list[Shard], processes: int, label: str) -> list[ShardStats]:
        """The stats of every shard, in order; finished ones are not tokenized again.

        Raises:
            UserError: from the text, naming file and place.
            RunError: if a process is killed, as the system does when memory is short.
        """
        # By its description, which is written last: ids without one are of a killed process.
        todo = [shard for shard in shards if self.finished(shard) is None]
        if min(processes, len(todo)) >= 2 and _has_datasets():
            self._in_parallel(todo, processes, label)
        elif todo:
            encode = self._encoder()
            with byte_progress(label, sum(shard.weight for shard in todo)) as progress, one_thread():
                for shard in todo:
                    self.tokenize(shard, encode)
                    progress.update(shard.weight)
        done = [self.finished(shard) for shard in shards]
        return [stats for stats in done if stats is not None]

    def _in_parallel(self, todo: list[Shard], processes: int, label: str) -> None:
        """Every shard by a process of datasets' own pool. The first error of the text ends all, and is raised here."""
        import datasets

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        work = datasets.Dataset.from_dict({"number": range(len(todo))})
        # A file, for it reaches processes however they were started. Ending in .tmp it goes with a killed one's others.
        stop = self.folder / f".stop.{os.getpid()}.{os.urandom(4).hex()}.tmp"
        _pool_is_starting.set()
        try:
            outcome = work.map(
                _tokenize_row, fn_kwargs={"work": self, "shards": todo, "stop": stop}, desc=label,
                num_proc=min(processes, len(todo)), load_from_cache_file=False, new_fingerprint=os.urandom(8).hex(),
            )  # fmt: skip
        except RuntimeError as error:
            if "abruptly died" not in str(error):  # datasets has no class of its own for it.
                raise
            raise RunError(
                "a tokenizing process was killed, perhaps for want of memory: what is done is kept; run again, with a "
                "smaller data.prepare_processes if so"
            ) from error
        finally:
            _pool_is_starting.clear()
            stop.unlink(missing_ok=True)
        for message in outcome["error"]:
            if message:
                raise UserError(message)

    def _encoder(self) -> Encoder | None:
        return encoder(tokenizer_from_text(self.tokenizer)) if self.tokenizer else None

    def _text_encoder(self, encode: Encoder | None) -> TextEncoder:
        """Encodes one text of an example: special tokens of a conversation, which its template wrote, as such."""
        if self.records.kind == "messages":
            assert self.tokenizer is not None, "a chat template belongs to a tokenizer"
            return special_encoder(tokenizer_from_text(self.tokenizer))
        if encode is None:
            return lambda text, where: code_points(text).astype(np.uint32)
        return lambda text, where: np.concatenate([np.zeros(0, np.uint32), *encode([text], where)])

    def remove(self, shards: list[Shard]) -> None:
        """Delete the files of shards whose ids are in a token store now."""
        for shard in shards:
            for path in self.folder.glob(f"{self.path(shard, '*').name}"):
                path.unlink(missing_ok=True)


class StoppedError(Exception):
    """Another process met an error, which is the one to report."""


def _tokenize_row(row: dict[str, int], work: ShardTokenizer, shards: list[Shard], stop: Path) -> dict[str, str]:
    os.environ[THREADS] = "false"  # One thread each: there are as many processes as shall work.
    _end_with_parent()
    try:
        work.tokenize(shards[row["number"]], work._encoder(), stop)
    except StoppedError:
        return {"error": ""}
    except UserError as error:
        stop.touch()
        return {"error": str(error)}
    return {"error": ""}


@cache
def _end_with_parent() -> None:
    """End this process within a second after its parent, which may be killed with no chance to say so.

    A worker of a pool waits for its next task on a pipe that the other workers hold open too: it would wait for ever.
    """

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


_pool_is_starting = threading.Event()
"""datasets starts a process for its queue too, in which no function of ours is ever called: it is met at its fork."""


def _after_fork() -> None:
    if _pool_is_starting.is_set():
        _end_with_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _has_datasets() -> bool:
    from importlib.util import find_spec

    return find_spec("datasets") is not None


@contextmanager
def one_thread() -> Iterator[None]:
    """Documents are short: the tokenizers' own threads would wait for each other more than they work."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "false"
    try:
        yield
    finally:
        del os.environ[THREADS]
        if before is not None:
            os.environ[THREADS] = before


def encode_example(
    example: Example, encode: TextEncoder, end: int | None, where: object
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    """Ids of an example, and which of them are learned (1, else 0), of one length.

    Each text is encoded by itself, as a prompt is when a model is asked: where a prompt ends a token ends.

    Args:
        end: the id that is learned after the last text; None if that says itself where it ends.
    """
    parts = [(encode(text, where), learned) for text, learned in example]
    if end is not None:
        # Without a prompt an answer begins as a text from nothing does: after the end of another.
        start = [(np.array([end], dtype=np.uint32), False)] if parts[0][1] else []
        parts = [*start, *parts, (np.array([end], dtype=np.uint32), True)]
    ids = np.concatenate([ids for ids, _ in parts])
    return ids, np.concatenate([np.full(len(ids), learned, dtype=np.uint8) for ids, learned in parts])


class _Reading:
    """A document's blocks on their way to the encoder, with their checksum, length and characters."""

    def __init__(self, document: Document, seen: npt.NDArray[np.bool_], stop: Path | None) -> None:
        self._document, self._seen, self._stop = document, seen, stop
        self.sha256, self.bytes = hashlib.sha256(document.identity), 0

    def finish(self) -> None:
        """Take in the texts of examples, which are encoded one by one."""
        for _ in self if self._document.examples else ():
            pass

    def __iter__(self) -> Iterator[str]:
        for block in self._document.blocks:
            # One stat takes 1 µs, a short document 50 µs.
            if self._stop and self._stop.exists():
                raise StoppedError
            raw = block.encode()
            if not self._document.identity:
                self.sha256.update(raw)
            self.bytes += len(raw)
            if block.isascii():
                self._seen[np.frombuffer(raw, dtype=np.uint8)] = True
            else:
                self._seen[code_points(block)] = True
            yield block


def _encoded(encode: Encoder | None, text: _Reading, where: object) -> Iterator[npt.NDArray[Any]]:
    return encode(text, where) if encode else map(code_points, text)
