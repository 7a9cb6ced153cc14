"""The two exceptions whose cause is known: one line on the screen instead of a traceback; the commonest check."""

from __future__ import annotations


class UserError(Exception):
    """What the user gave cannot be used.

    The command line prints each problem as ``tinytf: error: …`` and exits 2; an exception that is neither this nor
    `RunError` is our bug and keeps its traceback.

    Args:
        problems: one line each: what, where, what to do.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(self.problems)


class RunError(Exception):
    """The run cannot go on, and it is known why: the loss is not finite, the disk is full, memory is short.

    The command line prints the message as ``tinytf: error: …`` and exits 1.
    """


def require_at_least(section: str, **settings: tuple[float | None, float]) -> None:
    """Raise UserError naming each setting of a config's section, given as (value, minimum), that is too small."""
    wrong = [
        f"{section}.{name} is {value}, but must be at least {minimum}"
        for name, (value, minimum) in settings.items()
        if value is not None and value < minimum
    ]
    if wrong:
        raise UserError(*wrong)
