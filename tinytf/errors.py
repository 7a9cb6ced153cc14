"""The two exceptions whose cause is known: one line on the screen instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """What the user gave cannot be used. The message is one line: what, where, what to do.

    The command line prints it as ``tinytf: error: …`` and exits 2; an exception that is neither this nor
    `RunError` is our bug and keeps its traceback.
    """


class RunError(Exception):
    """The run cannot go on, and it is known why: the loss is not finite, the disk is full, memory is short.

    The command line prints the message as ``tinytf: error: …`` and exits 1.
    """
