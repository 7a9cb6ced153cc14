"""4. Windows: an endless shuffled stream of them for training, the whole split in order for evaluation.

The order of an epoch is a permutation that is computed, not stored: it needs no memory, however many windows there
are, and batch k is known from (seed, k) alone.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler

from tinytf.errors import UserError

IGNORE_INDEX = -100
"""The target of a padded position: cross-entropy's own ignore_index."""

CHUNK = 64
"""Batches whose windows are computed together."""

Batch = tuple[Tensor, ...]
"""Tokens, targets and, if documents are kept apart, positions in them; ``[batch, seq]`` each, int64."""


class Windows(Dataset[Batch]):
    """Token ids that travel to loader processes by file name, never by value.

    There is no ``__len__``: a distributed sampler over ours would divide the batches twice, and now fails.
    """

    def __init__(self, tokens: npt.NDArray[Any], batch_size: int, seq_len: int, rank: int, world: int) -> None:
        assert 0 <= rank < world, (rank, world)
        self.tokens = tokens
        self.flat = np.asarray(tokens)  # a plain view: indexing a memmap object costs twice as much
        self.batch_size, self.seq_len, self.rank, self.world = batch_size, seq_len, rank, world

    def __getstate__(self) -> dict[str, Any]:
        mapped = {key: (value.filename, value.dtype, value.shape) for key, value in self.__dict__.items()
                  if isinstance(value, np.memmap)}  # fmt: skip
        return {key: value for key, value in self.__dict__.items() if key != "flat"} | {"mapped": mapped} | mapped

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for key, (name, dtype, shape) in state["mapped"].items():
            setattr(self, key, np.memmap(name, dtype=dtype, mode="r", shape=shape))
        self.flat = np.asarray(self.tokens)


class ShuffledBatches(Windows):
    """``batches[k]`` is a function of the seed and k: windows of one permutation per epoch, without replacement.

    Of the samples of batch k, `world` ranks take every world-th: 1 x 8 and 2 x 4 devices read the same ones.

    Args:
        tokens: [N] ids.
        batch_size: windows per batch on this rank, B.
        seq_len: tokens per window, T.
        seed: chooses offsets and orders.
        rank, world: this process, among how many.
        first_sample: samples that came before batch 0, of an earlier part of the run.
    """

    per_epoch: int
    """Windows in an epoch."""
    offsets, stride = 1, 1
    """Window w of an epoch begins at w * stride, after an offset of its epoch, of so many."""

    def __init__(
        self,
        tokens: npt.NDArray[Any],
        batch_size: int,
        seq_len: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        first_sample: int = 0,
    ) -> None:
        super().__init__(tokens, batch_size, seq_len, rank, world)
        self.seed, self.first_sample = seed, first_sample
        self._chunk, self._starts = -1, np.empty((0, batch_size), dtype=np.int64)

    def require_batch(self, holds: str) -> None:
        """Raise UserError if a batch of all ranks is larger than an epoch, which ``holds`` describes."""
        if self.batch_size * self.world > self.per_epoch:
            raise UserError(
                f"a batch of {self.batch_size * self.world} windows (data.batch_size {self.batch_size} on "
                f"{_devices(self.world)}) is larger than an epoch: {holds} {self.per_epoch} windows of {self.seq_len}; "
                "lower data.batch_size or data.seq_len"
            )

    def starts(self, k: int) -> npt.NDArray[np.int64]:
        """Where the windows of batch k begin, [B]."""
        chunk, place = divmod(k, CHUNK)
        if chunk != self._chunk:
            self._chunk, self._starts = chunk, self._starts_of(chunk)
        starts: npt.NDArray[np.int64] = self._starts[place]
        return starts

    def _starts_of(self, chunk: int) -> npt.NDArray[np.int64]:
        """[CHUNK, B]: many batches at once, for the cost is in the number of array operations, not in their size."""
        size = self.batch_size * self.world
        first = self.first_sample + chunk * CHUNK * size
        samples = first + np.arange(CHUNK * size).reshape(CHUNK, size)[:, self.rank :: self.world]
        epochs, places = samples // self.per_epoch, samples % self.per_epoch
        starts = np.empty_like(samples)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            words = random_uint64("tinytf windows", self.seed, epoch, count=ROUNDS + 1)
            offset = int(words[ROUNDS]) % self.offsets
            starts[chosen] = offset + self.stride * permute(places[chosen], self.per_epoch, words[:ROUNDS])
        return starts


class ShuffledWindows(ShuffledBatches):
    """``batches[k]`` is (tokens [B, T], targets [B, T]), int64, of a text in which a window may begin anywhere.

    Each epoch has n = max(1, (N - T) // T) windows that do not overlap, and starts at an offset of its own, so that
    every epoch cuts the text elsewhere.

    Args:
        separator: the id that ends a document, if documents are kept apart; then positions are in a batch too.

    Raises:
        UserError: if there is no window, or a batch of all ranks is larger than an epoch.
    """

    def __init__(
        self,
        tokens: npt.NDArray[Any],
        batch_size: int,
        seq_len: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        first_sample: int = 0,
        separator: int | None = None,
    ) -> None:
        super().__init__(tokens, batch_size, seq_len, seed, rank, world, first_sample)
        require_window("train", len(tokens), seq_len)
        self.separator = separator
        self.per_epoch = max(1, (len(tokens) - seq_len) // seq_len)
        # Every start from which per_epoch windows still fit: all tokens are seen, though windows never overlap.
        self.offsets, self.stride = len(tokens) - self.per_epoch * seq_len, seq_len
        self.require_batch(f"{len(tokens):,} training tokens hold")
        self._span = np.arange(seq_len + 1)

    def __getitem__(self, k: int) -> Batch:
        window = self.flat[self.starts(k)[:, None] + self._span].astype(np.int64)
        both = torch.from_numpy(window)
        return with_positions(both[:, :-1].contiguous(), both[:, 1:].contiguous(), self.separator)


class InfiniteSampler(SequentialSampler):
    """start, start + 1, … without end: one stream, in which Lightning never sees an epoch.

    A SequentialSampler, because Lightning's ``overfit_batches`` leaves those as they are.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def __len__(self) -> int:
        raise TypeError("it has no end")

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class SequentialWindows(Windows):
    """The whole split in order, every target exactly once, all batches (tokens [B, T], targets [B, T]) of one shape.

    Positions past the end have token 0 and target -100. Ranks take batches in turn and equally many, the last ones of
    padding alone if they do not divide, so that no rank waits for another. With a ``separator``, which ends documents,
    positions in them are in a batch too.
    """

    def __init__(
        self,
        tokens: npt.NDArray[Any],
        batch_size: int,
        seq_len: int,
        rank: int = 0,
        world: int = 1,
        name: str = "val",
        separator: int | None = None,
    ) -> None:
        super().__init__(tokens, batch_size, seq_len, rank, world)
        self.separator = separator
        require_window(name, len(tokens), seq_len)
        per_batch = batch_size * seq_len
        self.count = ceil_div(ceil_div(len(tokens) - 1, per_batch), world)
        """Batches of this rank."""

    def __getitem__(self, k: int) -> Batch:
        size = self.batch_size * self.seq_len
        start = (k * self.world + self.rank) * size
        read = torch.from_numpy(self.flat[start : start + size + 1].astype(np.int64))
        # One shape for all batches, the last included: a compiled model is compiled once.
        targets = torch.full((size,), IGNORE_INDEX)
        tokens = torch.zeros(size, dtype=torch.int64)
        known = max(0, len(read) - 1)
        tokens[:known], targets[:known] = read[:-1], read[1:]
        shape = (self.batch_size, self.seq_len)
        return with_positions(tokens.view(shape), targets.view(shape), self.separator)


def with_positions(tokens: Tensor, targets: Tensor, separator: int | None) -> Batch:
    """A batch in which documents are kept apart, if there is a token that ends them."""
    if separator is None:
        return tokens, targets
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    begins = torch.where(tokens[:, :-1] == separator, places[:, 1:], 0)
    return tokens, targets, places - F.pad(begins, (1, 0)).cummax(1).values


def require_window(name: str, n_tokens: int, seq_len: int) -> None:
    """Raise UserError if a split does not hold one window and the token after it."""
    if n_tokens <= seq_len:
        raise UserError(
            f"the {name} split has {n_tokens:,} tokens, and one window with its targets takes {seq_len + 1:,} "
            f"(data.seq_len {seq_len}): lower data.seq_len to at most {max(n_tokens - 1, 1)}, "
            + ("or give more text" if name == "train" else f"or raise data.{name}_fraction")
        )


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _devices(world: int) -> str:
    return "1 device" if world == 1 else f"{world} devices"


# -- the permutation -----------------------------------------------------------------------------------------------

ROUNDS = 8
UInt64s = npt.NDArray[np.uint64]


def random_uint64(*what: object, count: int) -> UInt64s:
    """``count`` random numbers that are a function of ``what``, the same on every machine and version."""
    named = ":".join(map(str, what)).encode()
    return np.frombuffer(hashlib.shake_256(named).digest(8 * count), dtype="<u8").astype(np.uint64)


def permute(index: npt.NDArray[np.int64], n: int, keys: UInt64s) -> npt.NDArray[np.int64]:
    """Where the permutation of range(n) sends each index: a bijection for every n and every keys.

    A Feistel network over the smallest power of two that holds n; what falls outside is sent on until it falls inside
    (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), under two steps on average.

    Args:
        index: [any], each in 0 .. n-1.
        n: how many.
        keys: [ROUNDS], from `random_uint64`.
    """
    bits = (n - 1).bit_length()
    image = index.astype(np.uint64)
    outside = np.arange(image.size)
    while outside.size:
        image[outside] = _feistel(image[outside], bits, keys)
        outside = outside[image[outside] >= np.uint64(n)]
    return image.astype(np.int64)


def _feistel(x: UInt64s, bits: int, keys: UInt64s) -> UInt64s:
    # The halves differ in width where bits is odd, and trade places each round: an even number of rounds restores them.
    widths = bits // 2, bits - bits // 2
    left, right = x >> np.uint64(widths[1]), x & _ones(widths[1])
    for number, key in enumerate(keys):
        left, right = right, left ^ (mix(right + key) & _ones(widths[number % 2]))
    image: UInt64s = (left << np.uint64(widths[1])) | right
    return image


def _ones(width: int) -> np.uint64:
    mask: np.uint64 = np.uint64((1 << width) - 1)
    return mask


def mix(x: UInt64s) -> UInt64s:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014): every bit of x moves every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64s = x ^ (x >> np.uint64(31))
    return mixed
