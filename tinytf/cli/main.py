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
from tinytf.errors import RunError, UserError
from tinytf.utils.text import public

COMMANDS = {
    "fit": ("fit:run", "train, or resume with --ckpt_path last"),
    "validate": ("evaluate:validate", "evaluate a checkpoint on the validation split"),
    "test": ("evaluate:test", "evaluate a checkpoint on the test split"),
    "predict": ("evaluate:predict", "the loss of each window of the validation split, as JSON lines"),
    "prepare": ("prepare:run", "tokenize a corpus ahead of fit"),
    "generate": ("generate:run", "write text with a checkpoint"),
    "inspect": ("inspect:run", "what a checkpoint is, or how two differ"),
    "export": ("export:run", "export a checkpoint and measure each file against it"),
    "verify": ("verify:run", "measure an export again"),
    "plan": ("plan:run", "what a config needs of memory and time, before anything is trained"),
    "runs": ("runs:run", "list the runs"),
    "config-schema": ("config.schema:run", "print a JSON Schema of the YAML files, for editors"),
    "completion": ("config.completion:run", "print the completions of bash or zsh"),
}
"""Of each command: the module in this folder and its function, and what it does in a line."""

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")


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
            sys.stderr.write(f"tinytf: error: {public(problem)}\n")
        return 2
    except RunError as error:
        sys.stderr.write(f"tinytf: error: {public(str(error))}\n")
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
        raise UserError(f"unknown command {command!r}; {hint}")
    module, _, function = COMMANDS[command][0].partition(":")
    return int(getattr(import_module(f"tinytf.cli.{module}"), function)(argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
