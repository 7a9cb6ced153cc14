"""`tinytf generate --interactive`: one prompt after the other, typed at a terminal or read from a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from tinytf.cli.main import write_error
from tinytf.errors import UserError

LONGEST_PROMPT = 2**24
"""Bytes; a context has some thousands, of which the last half counts."""


def complete_prompts(first: str, source: str, complete: Callable[[str, str], None]) -> None:
    """Complete each prompt as it comes, until the end of stdin.

    At a terminal Ctrl-C stops a text, and a prompt that cannot be encoded is a line on stderr; both lead to the next
    prompt. In a pipe they end the command, as they would without --interactive.

    Args:
        first: the prompt to begin with; empty for none.
        source: the flag that it came from, for messages.
        complete: writes what follows a prompt, given with the place that it came from, for messages.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        _at_terminal(first, source, complete)
    else:
        _in_pipe(first, source, complete)


def _at_terminal(first: str, source: str, complete: Callable[[str, str], None]) -> None:
    with contextlib.suppress(ImportError):  # Where there is none, as on Windows, the terminal itself edits lines.
        import readline  # noqa: F401 - input() then edits with it, and keeps a history
    print("one prompt a line; Ctrl-C stops a text, Ctrl-D ends", file=sys.stderr)
    prompt: str | None = first
    while prompt is not None:
        try:
            if prompt:
                complete(prompt, source)
            prompt, source = next_prompt(_typed_line), "prompt"
        except KeyboardInterrupt:
            prompt = ""
            print()
        except UserError as error:
            prompt = ""
            write_error(str(error))


def _in_pipe(first: str, source: str, complete: Callable[[str, str], None]) -> None:
    lines = PipedLines()
    prompt: str | None = first
    while prompt is not None:
        if prompt:
            complete(prompt, source)
        prompt = next_prompt(lines.read)
        source = lines.place


def next_prompt(read: Callable[[str], str | None]) -> str | None:
    """A line, and those after it for as long as each ends in a backslash; None at the end.

    Args:
        read: gives a line without its line feed, after showing a mark.
    """
    line = read("> ")
    if line is None:
        return None
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read("... ") or "")
    return "\n".join(lines)


def _typed_line(mark: str) -> str | None:
    if not sys.stdout.isatty():  # The texts go to a file: the mark is for the terminal.
        print(mark, end="", file=sys.stderr, flush=True)
        mark = ""
    try:
        return os.fsencode(input(mark)).decode("utf-8")
    except EOFError:
        print()
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"prompt: byte {error.start} is not UTF-8") from error


class PipedLines:
    """Lines of stdin; ``place`` names the last one, for messages."""

    def __init__(self) -> None:
        self._number = 0
        self.place = ""

    def read(self, mark: str) -> str | None:
        """The next line without its end, None after the last; a pipe shows no mark."""
        line = sys.stdin.buffer.readline(LONGEST_PROMPT + 1) if sys.stdin is not None else b""
        self._number += 1
        self.place = f"stdin, line {self._number}"
        if not line:
            return None
        if len(line) > LONGEST_PROMPT:
            raise UserError(f"{self.place}: it has more than the {LONGEST_PROMPT:,} bytes that it may have")
        try:
            return line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.place}: byte {error.start} is not UTF-8") from error
