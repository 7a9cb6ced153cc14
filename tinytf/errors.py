"""The one exception that means: the input is wrong, not the program."""

from __future__ import annotations


class UserError(Exception):
    """What the user gave cannot be used. The message is one line: what, where, what to do.

    The command line prints it as ``tinytf: error: …`` and exits 2; every other exception keeps its traceback.
    """
