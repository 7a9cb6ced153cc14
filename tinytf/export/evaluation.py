"""The token ids every artefact is compared on: held-out text, every row of the vocabulary, many shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinytf.errors import UserError
from tinytf.export.tracing import EXPORT_SHAPE

MAX_TOKENS = 4096

FILE = "evaluation.npy"
"""Name in a bundle: verifying later needs the same text."""


@dataclass(frozen=True)
class Case:
    """Sequences ``[batch, seq]``, and the lengths of the chunks they are fed in (None: at once)."""

    tokens: Tensor
    chunks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Evaluation:
    """Held-out windows.

    Args:
        windows: ``[windows, length + 1]`` token ids; each position's target is the id after it.
        source: where the text came from, in words.
    """

    windows: Tensor
    source: str

    @classmethod
    def from_ids(cls, ids: np.ndarray, source: str, max_seq_len: int, max_tokens: int = MAX_TOKENS) -> Evaluation:
        """Windows of the full context, evenly spread over the ids, about ``max_tokens`` in all.

        Raises:
            UserError: where there are fewer than two ids.
        """
        if len(ids) < 2:
            raise UserError(f"{source}: {len(ids)} token ids are too few to compare anything on; give --text FILE")
        length = min(max_seq_len, len(ids) - 1)
        count = max(1, min(max_tokens // length, (len(ids) - 1) // length))
        starts = np.linspace(0, len(ids) - 1 - length, count).astype(np.int64)
        rows = np.stack([np.asarray(ids[start : start + length + 1], dtype=np.int64) for start in starts])
        return cls(torch.from_numpy(rows), source)

    @property
    def tokens(self) -> int:
        """Positions with a target."""
        return self.windows.shape[0] * (self.windows.shape[1] - 1)

    @property
    def sha256(self) -> str:
        """Of the token ids, in hex: the same on every platform."""
        return hashlib.sha256(self.windows.numpy().astype("<i8").tobytes()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the windows as a ``.npy`` file of int32."""
        np.save(path, self.windows.numpy().astype(np.int32), allow_pickle=False)

    @classmethod
    def load(cls, path: Path, source: str) -> Evaluation:
        """Read what `save` wrote; UserError where the file is none."""
        try:
            windows = np.load(path, allow_pickle=False).astype(np.int64)
        except (OSError, ValueError) as error:
            raise UserError(f"evaluation set {path}: {error}") from error
        return cls(torch.from_numpy(windows), source)

    def passage(self, start: int, length: int) -> Tensor:
        """That many held-out ids from the windows laid end to end, going round at the end."""
        flat = self.windows[:, :-1].flatten()
        return flat[torch.arange(start, start + length) % len(flat)]

    def batch(self, batch_size: int, length: int) -> Tensor:
        """Different passages as ``[batch_size, length]``."""
        return torch.stack([self.passage(row * (length + 7), length) for row in range(batch_size)])


def shapes(evaluation: Evaluation, max_seq_len: int) -> Iterator[Case]:
    """Batches of 1 to 8, lengths of 1 to the whole context."""
    half = max_seq_len // 2 + 1
    for batch_size, length in ((1, 1), (1, max_seq_len), (8, 19), (5, half), (3, 2), (2, max_seq_len), (1, 7)):
        length = min(length, max_seq_len)
        if (batch_size, length) != EXPORT_SHAPE:
            yield Case(evaluation.batch(batch_size, length))


def chunked(evaluation: Evaluation, max_seq_len: int) -> Iterator[Case]:
    """Prefill in one and in several chunks, decode by single tokens, both up to the last position."""
    tail = min(16, max_seq_len - 1)
    half = max_seq_len // 2
    for batch_size, plan in (
        (1, (max_seq_len - tail, *[1] * tail)),
        (1, (half, max_seq_len - half)),
        (2, (1, max_seq_len - 1)),
        (3, (4, *[1] * 6)),
        (4, (3, 1, 5, 1, 1)),
    ):
        chunks = tuple(chunk for chunk in plan if chunk > 0)
        if sum(chunks) <= max_seq_len and (batch_size, sum(chunks)) != EXPORT_SHAPE:
            yield Case(evaluation.batch(batch_size, sum(chunks)), chunks)


def vocabulary(vocab_size: int, max_seq_len: int) -> Iterator[Case]:
    """Every id once as an input, in a fixed shuffled order, in rows of at most 64."""
    ids = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(0))
    length = min(64, max_seq_len, vocab_size)
    whole = vocab_size // length * length
    for rows in torch.split(ids[:whole].view(-1, length), 4):
        yield Case(rows)
    if whole < vocab_size:
        yield Case(ids[whole:][None])


def held_out(evaluation: Evaluation) -> Iterator[tuple[Case, Tensor]]:
    """Windows two at a time, with the targets of their positions."""
    for rows in torch.split(evaluation.windows, 2):
        yield Case(rows[:, :-1].contiguous()), rows[:, 1:]
