"""Slices tokenised in parallel processes. What one of them has finished stays, whatever happens to the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from tinytf.data.parts import Part, PartFiles, make_part
from tinytf.data.pieces import Encoder, encoder
from tinytf.data.progress import ByteProgress, byte_progress
from tinytf.data.records import Slice
from tinytf.data.tokenizer import tokenizer_from_text
from tinytf.errors import RunError

POLL_SECONDS = 0.1
THREADS = "TOKENIZERS_PARALLELISM"
"""The library reads it at every call."""


@dataclass(frozen=True)
class Work:
    """What is done with each slice. Plain values: it travels to other processes.

    Attributes:
        tokenizer: as JSON; None where only the alphabet's numbers are wanted, see `tinytf.data.parts.make_part`.
    """

    folder: Path
    text_field: str
    tokenizer: str | None
    dtype: str

    def files(self, piece: Slice) -> PartFiles:
        """Where a slice's part is kept."""
        return PartFiles.of(self.folder, piece, self.text_field)

    def encoder(self) -> Encoder | None:
        """From text to ids; None where only the alphabet's numbers are wanted."""
        return encoder(tokenizer_from_text(self.tokenizer)) if self.tokenizer else None


def tokenise(work: Work, slices: list[Slice], processes: int, label: str) -> list[Part]:
    """The part of every slice, in order; those that are there already are not made again.

    Raises:
        UserError: from the text, naming file and place.
        RunError: where a process is killed, as the system does when memory is short.
    """
    parts = [work.files(piece).read() for piece in slices]
    missing = [number for number, part in enumerate(parts) if part is None]
    with byte_progress(label, sum(piece.weight for piece in slices)) as progress:
        progress.skip(sum(piece.weight for piece, part in zip(slices, parts, strict=True) if part))
        todo = [slices[number] for number in missing]
        made = (_here if min(processes, len(todo)) < 2 else _elsewhere)(work, todo, processes, progress)
    for number, part in zip(missing, made, strict=True):
        parts[number] = part
    return [part for part in parts if part is not None]


def _here(work: Work, slices: list[Slice], processes: int, progress: ByteProgress) -> list[Part]:
    encode = work.encoder() if slices else None
    with _one_thread():
        return [
            make_part(work.files(piece), piece, work.text_field, encode, work.dtype, progress.advance)
            for piece in slices
        ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Documents are short: the tokenizers' own threads would wait for each other more than they work."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "false"
    try:
        yield
    finally:
        del os.environ[THREADS]
        if before is not None:
            os.environ[THREADS] = before


def _elsewhere(work: Work, slices: list[Slice], processes: int, progress: ByteProgress) -> list[Part]:
    # Spawned: a fork of a process with threads (torch's, the tokenizers') may hang.
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("Q", 0), context.Event()
    pool = ProcessPoolExecutor(min(processes, len(slices)), context, _begin, (work, done, stop))
    try:
        futures = [pool.submit(_make, piece) for piece in slices]
        _watch(futures, done, progress)
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise RunError(
            "a tokenising process was killed, perhaps for want of memory: what is done is kept; run again, with a "
            "smaller data.prepare_processes if so"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _watch(futures: list[Future[Part]], done: Any, progress: ByteProgress) -> None:
    """Show progress until all are done or one has failed, whose exception it raises."""
    waiting, shown = set(futures), 0
    while waiting:
        ended, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
        now = done.value
        progress.advance(now - shown)
        shown = now
        for future in ended:
            future.result()


_STATE: dict[str, Any] = {}
"""Of a tokenising process: its work, encoder, count and stop."""


def _begin(work: Work, done: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The first process hears it, and stops us.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[THREADS] = "false"  # One each: there are as many of us as shall work.
    _STATE.update(work=work, encode=work.encoder(), done=done, stop=stop)


def _end_with_parent() -> None:
    """A parent that is killed says nothing, and its pool's processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _make(piece: Slice) -> Part:
    work: Work = _STATE["work"]
    return make_part(work.files(piece), piece, work.text_field, _STATE["encode"], work.dtype, _advance)


def _advance(n_bytes: int) -> None:
    if _STATE["stop"].is_set():
        raise InterruptedError("the first process has stopped")
    with _STATE["done"].get_lock():
        _STATE["done"].value += n_bytes
