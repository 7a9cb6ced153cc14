"""The two exceptions whose cause is known: one line on the screen instead of a traceback."""

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
