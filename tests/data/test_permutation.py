"""A bijection for every n, with no order that the eye or a statistic finds."""

from __future__ import annotations

import numpy as np
import pytest

from tinytf.data.permutation import ROUNDS, permute, words_of


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 1000, 1024, 1025, 4095, 4096, 4097])
def test_it_is_a_bijection(n: int) -> None:
    for seed in range(5):
        image = permute(np.arange(n), n, words_of(seed, count=ROUNDS))
        assert np.array_equal(np.sort(image), np.arange(n))


def test_one_place_is_that_of_the_whole() -> None:
    keys = words_of("x", count=ROUNDS)
    whole = permute(np.arange(1000), 1000, keys)
    assert [int(permute(np.array([i]), 1000, keys)[0]) for i in range(0, 1000, 37)] == whole[::37].tolist()


def test_no_order_is_left() -> None:
    n = 4097
    images = [permute(np.arange(n), n, words_of(seed, count=ROUNDS)) for seed in range(8)]
    for image in images:
        # Standard deviations: 1/sqrt(n) = 0.016 for the correlation, about 1 for the number of fixed points.
        assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.08
        assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.08
        assert np.mean(np.abs(np.diff(image)) == 1) < 0.01
        assert np.sum(image == np.arange(n)) < 9
        # In runs of 64 the mean is that of the whole up to its standard error, (n / sqrt(12)) / 8 = 148.
        assert np.abs(image[: 64 * 64].reshape(64, 64).mean(axis=1) - n / 2).max() < 6 * 148
    assert np.mean(images[0] == images[1]) < 0.01


def test_small_ones_take_every_order() -> None:
    seen = {tuple(permute(np.arange(3), 3, words_of(seed, count=ROUNDS))) for seed in range(200)}
    assert len(seen) == 6


def test_it_needs_no_memory_for_large_n() -> None:
    n = 10**15 + 37
    index = np.arange(0, n, n // 50)
    image = permute(index, n, words_of(1, count=ROUNDS))
    assert len(set(image.tolist())) == len(index)
    assert image.min() >= 0
    assert image.max() < n


def test_the_words_are_the_same_for_ever() -> None:
    """A resumed run must find the order it left, also after an upgrade of Python or numpy."""
    assert permute(np.arange(10), 10, words_of("tinytf windows", 0, 0, count=ROUNDS)).tolist() == PINNED


PINNED = [3, 9, 6, 7, 8, 0, 4, 2, 1, 5]
