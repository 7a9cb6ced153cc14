"""What the cuts keep, and that draws follow the distribution and the seed."""

import math

import pytest
import torch

from tinytf.generation.sampling import Sampling, keep_min_p, keep_top_k, keep_top_p, probabilities, sample

PROBABILITIES = torch.tensor([[0.05, 0.4, 0.15, 0.3, 0.1], [0.2, 0.1, 0.6, 0.06, 0.04]], dtype=torch.float64)
EVERYTHING = [[0, 1, 2, 3, 4]] * 2
LOGITS = PROBABILITIES.log() + 3.0


def kept(logits):
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(("k", "expected"), [(1, [[1], [2]]), (2, [[1, 3], [0, 2]]), (5, EVERYTHING), (99, EVERYTHING)])
def test_top_k_keeps_the_k_most_probable(k, expected):
    assert kept(keep_top_k(LOGITS, k)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.01, [[1], [2]]),
        (0.39, [[1], [2]]),
        (0.41, [[1, 3], [2]]),
        (0.61, [[1, 3], [0, 2]]),
        (0.86, [[1, 2, 3, 4], [0, 1, 2]]),
        (1.0, EVERYTHING),
    ],
)
def test_top_p_keeps_the_fewest_that_hold_p(p, expected):
    assert kept(keep_top_p(LOGITS, p)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.0, EVERYTHING), (0.2, [[1, 2, 3, 4], [0, 2]]), (0.7, [[1, 3], [2]]), (1.0, [[1], [2]])],
)
def test_min_p_is_relative_to_the_most_probable(p, expected):
    assert kept(keep_min_p(LOGITS, p)) == expected


def test_the_cuts_apply_in_the_documented_order():
    """top_k leaves 4/7 and 3/7, so top_p 0.5 keeps one; before top_k it would have kept two, as min_p would alone."""
    assert kept(probabilities(LOGITS[:1], Sampling(top_k=2, top_p=0.5)).log()) == [[1]]
    # A temperature of 2 flattens 0.4 and 0.15 to a ratio of 0.61, so that min_p 0.5 keeps token 2; at 1 it would not.
    assert kept(probabilities(LOGITS[:1], Sampling(temperature=2.0, min_p=0.5)).log()) == [[1, 2, 3, 4]]
    assert kept(probabilities(LOGITS[:1], Sampling(temperature=1.0, min_p=0.5)).log()) == [[1, 3]]


def test_what_is_kept_keeps_its_proportions():
    found = probabilities(LOGITS, Sampling(top_k=2))
    torch.testing.assert_close(found[0], torch.tensor([0, 4 / 7, 0, 3 / 7, 0], dtype=torch.float64))
    torch.testing.assert_close(probabilities(LOGITS, Sampling()), PROBABILITIES)


def test_temperature_divides_the_logits():
    expected = PROBABILITIES**2 / (PROBABILITIES**2).sum(-1, keepdim=True)
    torch.testing.assert_close(probabilities(LOGITS, Sampling(temperature=0.5)), expected)


def test_draws_follow_the_distribution():
    count = 4000
    rows = LOGITS[:1].expand(count, -1)
    drawn = sample(rows, Sampling(top_k=3), generators(*range(count))).bincount(minlength=5) / count
    expected = torch.tensor([0, 0.4, 0.15, 0.3, 0]) / 0.85
    # Four standard deviations of a share near one half.
    torch.testing.assert_close(drawn, expected, atol=4 * math.sqrt(0.25 / count), rtol=0)
    assert drawn[0] == drawn[4] == 0


def test_temperature_zero_is_the_most_probable_and_draws_nothing():
    used = generators(0, 0)
    assert sample(LOGITS, Sampling(temperature=0.0), used).tolist() == [1, 2]
    assert torch.equal(used[0].get_state(), generators(0)[0].get_state())


def test_a_row_draws_the_same_whatever_stands_beside_it():
    torch.manual_seed(0)
    logits = torch.randn(6, 500)
    together = sample(logits, Sampling(), generators(*range(10, 16)))
    alone = [sample(logits[i : i + 1], Sampling(), generators(10 + i)).item() for i in range(6)]
    assert together.tolist() == alone
    assert len(set(together.tolist())) > 1


def test_a_rounding_error_of_the_logits_moves_no_draw():
    torch.manual_seed(0)
    logits = torch.randn(64, 300)
    noisy = logits + 1e-6 * torch.randn_like(logits)
    seeds = range(64)
    assert torch.equal(sample(logits, Sampling(), generators(*seeds)), sample(noisy, Sampling(), generators(*seeds)))


def test_logits_of_a_diverged_model_are_refused():
    for bad in (math.nan, math.inf):
        for temperature in (0.0, 1.0):
            with pytest.raises(FloatingPointError, match="not finite"):
                sample(torch.tensor([[0.0, bad, 1.0]]), Sampling(temperature=temperature), generators(0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_k", 0), ("top_p", 0.0),
        ("top_p", 1.1), ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.1),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value}"):
        Sampling(**{name: value})
