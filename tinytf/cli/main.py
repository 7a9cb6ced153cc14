"""The command `tinytf`: finds the asked command, and turns known failures into one line and an exit code.

Nothing heavy is imported before the command is known, so that --help and --version answer at once.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
from importlib import import_module

from tinytf import __version__
from tinytf.cli.commands import COMMANDS, TRAINER_COMMANDS
from tinytf.errors import RunError, UserError


def usage() -> str:
    """What --help prints."""
    lines = [f"  {name:<13} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: tinytf <command> [options]      tinytf <command> --help      tinytf --version",
            "",
            "Text in, a small transformer language model out.",
            "",
            *lines,
            "",
            "first run: tinytf fit --config tiny",
        )
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 a failure, 2 wrong input. A signal ends in 128 + its number, and a bug of ours in
        its traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        code = dispatch(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        for problem in error.problems:
            sys.stderr.write(f"tinytf: error: {problem}\n")
        return 2
    except RunError as error:
        sys.stderr.write(f"tinytf: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # The reader has seen enough, as head has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # So that flushing at exit is quiet.
        return 128 + signal.SIGPIPE


def dispatch(argv: list[str]) -> int:
    """Run the command that the arguments name, and return its exit code."""
    if argv in ([], ["-h"], ["--help"]):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"tinytf {__version__}")
        return 0
    command = argv[0]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"{command!r} is no command; {hint}")
    run = import_module(COMMANDS[command][0]).run
    return int(run(argv if command in TRAINER_COMMANDS else argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
