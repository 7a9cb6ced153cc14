"""A random order of n things that is computed, not stored: it needs no memory, however large n is."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

ROUNDS = 8
Words = npt.NDArray[np.uint64]


def words_of(*what: object, count: int) -> Words:
    """``count`` random 64-bit words that are a function of ``what``, the same on every machine and version."""
    named = ":".join(map(str, what)).encode()
    return np.frombuffer(hashlib.shake_256(named).digest(8 * count), dtype="<u8").astype(np.uint64)


def permute(index: npt.NDArray[np.int64], n: int, keys: Words) -> npt.NDArray[np.int64]:
    """Where the permutation of range(n) sends each index: a bijection for every n and every keys.

    A Feistel network over the smallest power of two that holds n; what falls outside is sent on until it falls inside
    (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), under two steps in the mean.

    Args:
        index: [any], each in 0 .. n-1.
        n: the number of things.
        keys: [ROUNDS], from `words_of`.
    """
    bits = (n - 1).bit_length()
    image = index.astype(np.uint64)
    outside = np.arange(image.size)
    while outside.size:
        image[outside] = _feistel(image[outside], bits, keys)
        outside = outside[image[outside] >= np.uint64(n)]
    return image.astype(np.int64)


def _feistel(x: Words, bits: int, keys: Words) -> Words:
    # The halves differ in width where bits is odd, and trade places each round: an even number of rounds restores them.
    widths = bits // 2, bits - bits // 2
    left, right = x >> np.uint64(widths[1]), x & _ones(widths[1])
    for number, key in enumerate(keys):
        left, right = right, left ^ (mix(right + key) & _ones(widths[number % 2]))
    image: Words = (left << np.uint64(widths[1])) | right
    return image


def _ones(width: int) -> np.uint64:
    mask: np.uint64 = np.uint64((1 << width) - 1)
    return mask


def mix(x: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every bit of x moves every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = x ^ (x >> np.uint64(31))
    return mixed
