"""Learning-rate schedules: linear warmup, then a decay."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from tinytf.errors import UserError


class Schedule(ABC):
    """A factor on every learning rate, as a function of the optimizer step.

    Args:
        warmup_steps: optimizer steps over which the factor rises linearly from 1 / warmup_steps to 1.
        final_fraction: the factor at the end of the decay.
        end_step: optimizer step where the decay ends; null means trainer.max_steps.
    """

    def __init__(self, warmup_steps: int = 100, final_fraction: float = 0.0, end_step: int | None = None) -> None:
        wrong = []
        if warmup_steps < 0:
            wrong.append(f"model.schedule.warmup_steps is {warmup_steps}, but must not be negative")
        if not 0.0 <= final_fraction <= 1.0:
            wrong.append(f"model.schedule.final_fraction is {final_fraction}, but must be in [0, 1]")
        if end_step is not None and end_step <= warmup_steps:
            wrong.append(f"model.schedule.end_step {end_step} is not after its warmup_steps {warmup_steps}")
        if wrong:
            raise UserError(*wrong)
        self.warmup_steps = warmup_steps
        self.final_fraction = final_fraction
        self.end_step = end_step

    def factor(self, step: int, max_steps: int) -> float:
        """The factor for the update that follows ``step`` finished ones."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        end = self.end_step or max_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, end - self.warmup_steps))
        return self.final_fraction + (1.0 - self.final_fraction) * self.decay(progress)

    @property
    def depends_on_max_steps(self) -> bool:
        """Whether a run made longer takes other learning rates in the steps it has already done."""
        return self.end_step is None

    @abstractmethod
    def decay(self, progress: float) -> float:
        """What is left of the peak, from 1 at progress 0 down to 0 at progress 1."""


class Linear(Schedule):
    """A straight line down: for short runs the best of the three (Defazio et al. 2023, arXiv:2310.07831)."""

    def decay(self, progress: float) -> float:
        return 1.0 - progress


class Cosine(Schedule):
    """Half a cosine down (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    def decay(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class Constant(Schedule):
    """The peak for ever: a finished run can be made longer exactly, as it can under any schedule with end_step set.

    Args:
        warmup_steps: optimizer steps over which the factor rises linearly from 1 / warmup_steps to 1.
    """

    def __init__(self, warmup_steps: int = 100) -> None:
        super().__init__(warmup_steps)

    @property
    def depends_on_max_steps(self) -> bool:
        return False

    def decay(self, progress: float) -> float:
        return 1.0
