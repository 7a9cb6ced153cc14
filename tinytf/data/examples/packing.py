"""4. Windows: whole examples, as many as fit into each. Which ones is a function of their lengths alone."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tinytf.data.windows import IGNORE_INDEX, Batch, ShuffledBatches, Windows, ceil_div

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """Which examples lie in which window.

    Attributes:
        starts: of each example the place of its first id, in the order of windows, [examples].
        lengths: of each example the ids that are read, which is one less than it has, [examples].
        bounds: window w holds the examples from bounds[w] to bounds[w + 1], [windows + 1].
        cut: examples whose end is cut off, being longer than a window.
        longest: ids of the longest example.
    """

    starts: Ints
    lengths: Ints
    bounds: Ints
    cut: int
    longest: int

    def __len__(self) -> int:
        return len(self.bounds) - 1


def pack(sizes: npt.NDArray[Any], seq_len: int) -> Packing:
    """Examples in windows, by best fit decreasing; a million take 0.3 to 1.3 s.

    Args:
        sizes: ids of each example, at least 2, [examples]. The last is a target alone, so that it takes no place.
        seq_len: places of a window.
    """
    sizes = sizes.astype(np.int64)
    lengths = np.minimum(sizes - 1, seq_len)
    order = np.argsort(-lengths, kind="stable")
    window = np.empty(len(sizes), dtype=np.int64)
    window[order] = _windows_of(np.bincount(lengths, minlength=seq_len + 1))
    order = np.argsort(window, kind="stable")
    starts = np.cumsum(sizes) - sizes
    bounds = np.concatenate(([0], np.cumsum(np.bincount(window))))
    return Packing(starts[order], lengths[order], bounds, int((sizes > seq_len + 1).sum()), int(sizes.max()))


def _windows_of(counts: Ints) -> Ints:
    """The window of each example, examples being in order of their lengths, the longest first.

    A window is filled with the longest that still fits, again and again, and the same lengths fill as many further
    windows as there are examples for: that takes a step per kind of window, of which there are about as many as
    lengths, and not one per example.

    Args:
        counts: examples of each length, from 0 to the size of a window.
    """
    space = len(counts) - 1
    left = counts.copy()
    present = np.flatnonzero(left).tolist()  # Lengths of which there are some left, sorted.
    filled: dict[int, list[Ints]] = {length: [] for length in present}
    windows = 0
    while present:
        room, kind, place = space, {}, len(present)
        while room and (place := bisect_right(present, room, hi=place)):
            length = present[place - 1]
            kind[length] = min(room // length, int(left[length]))
            room -= kind[length] * length
            place -= 1
        times = min(int(left[length]) // count for length, count in kind.items())
        for length, count in kind.items():
            filled[length].append(np.repeat(np.arange(windows, windows + times), count))
            left[length] -= times * count
            if not left[length]:
                present.remove(length)
        windows += times
    parts = [part for length in sorted(filled, reverse=True) for part in filled[length]]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


class PackedBatches(Windows):
    """Batches of windows of whole examples: tokens, targets and positions, [B, T] each.

    Only what is learned is a target. What no example fills has token 0, target -100 and position 0: a document of its
    own per place, which nothing attends to.
    """

    packing: Packing
    learned: npt.NDArray[np.uint8]

    def batch(self, windows: Ints) -> Batch:
        """The batch of these windows, [B]; those past the last are empty."""
        shape = (self.batch_size, self.seq_len)
        tokens, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        for row, window in enumerate(windows.tolist()):
            at = 0
            for number in (
                range(*self.packing.bounds[window : window + 2].tolist()) if window < len(self.packing) else ()
            ):
                start, length = int(self.packing.starts[number]), int(self.packing.lengths[number])
                ids = self.flat[start : start + length + 1]
                place = slice(at, at + length)
                tokens[row, place], positions[row, place] = ids[:-1], np.arange(length)
                learned = self.learned[start + 1 : start + length + 1]
                targets[row, place] = np.where(learned, ids[1:].astype(np.int64), IGNORE_INDEX)
                at += length
        return tuple(map(torch.from_numpy, (tokens, targets, positions)))


class ShuffledExamples(ShuffledBatches, PackedBatches):
    """The endless stream of training windows, a permutation of all per epoch.

    Args:
        learned: of each id whether it is, [N].
        packing: of the examples that the ids are.
        batches: the arguments of `ShuffledBatches`.

    Raises:
        UserError: if a batch of all ranks is larger than an epoch.
    """

    def __init__(
        self, tokens: npt.NDArray[Any], learned: npt.NDArray[np.uint8], packing: Packing, *batches: int
    ) -> None:
        super().__init__(tokens, *batches)
        self.learned, self.packing, self.per_epoch = learned, packing, len(packing)
        self.require_batch(f"{len(packing.lengths):,} training examples fill")

    def __getitem__(self, k: int) -> Batch:
        return self.batch(self.starts(k))


class SequentialExamples(PackedBatches):
    """All windows in order, each learned token a target once. Ranks take batches in turn and equally many."""

    def __init__(
        self, tokens: npt.NDArray[Any], learned: npt.NDArray[np.uint8], packing: Packing, *batches: int
    ) -> None:
        super().__init__(tokens, *batches)
        self.learned, self.packing = learned, packing
        self.count = ceil_div(ceil_div(len(packing), self.batch_size), self.world)

    def __getitem__(self, k: int) -> Batch:
        return self.batch((k * self.world + self.rank) * self.batch_size + np.arange(self.batch_size))
