"""Learning-rate factors."""

from itertools import pairwise

import pytest

from tinytf.errors import UserError
from tinytf.training import Constant, Cosine, Linear, Schedule


@pytest.mark.parametrize("schedule", [Linear(10, 0.1), Cosine(10, 0.1)])
def test_rises_to_one_then_falls_to_the_final_fraction(schedule: Schedule) -> None:
    factors = [schedule.factor(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[100] == pytest.approx(0.1)
    assert all(a <= b for a, b in pairwise(factors[:11]))
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_cosine_is_above_linear_before_the_middle_and_below_after() -> None:
    assert Cosine(0).factor(25, 100) > Linear(0).factor(25, 100)
    assert Cosine(0).factor(75, 100) < Linear(0).factor(75, 100)


def test_only_a_schedule_without_a_horizon_of_its_own_depends_on_max_steps() -> None:
    assert Linear().depends_on_max_steps
    assert not Linear(end_step=500).depends_on_max_steps
    assert not Constant().depends_on_max_steps
    assert Linear(10, end_step=50).factor(30, 100) == Linear(10, end_step=50).factor(30, 1000)
    assert Constant(10).factor(10**6, 10) == 1.0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((-1,), "warmup_steps"), ((1, 1.5), "final_fraction"), ((10, 0.0, 10), "end_step")],
)
def test_wrong_numbers_are_named(arguments: tuple[float, ...], name: str) -> None:
    with pytest.raises(UserError, match=f"model.schedule.{name}"):
        Linear(*arguments)  # type: ignore[arg-type]
