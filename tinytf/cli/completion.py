"""`tinytf completion`: what the Tab key does, for bash and zsh."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from tinytf.cli.flags import CommandParser
from tinytf.cli.main import COMMANDS, TRAINER_COMMANDS

NOTES = """\
bash: eval "$(tinytf completion bash)"       in ~/.bashrc
zsh:  eval "$(tinytf completion zsh)"        in ~/.zshrc, after compinit
"""

YAML = ("*.yaml", "*.yml")
FILES = ("prompt_file", "text", "model_file", "data.val_corpus", "data.test_corpus")
FOLDERS = ("output_dir", "root", "checkpoint.dir", "data.cache_dir", "folder")

CHECKPOINTS = {
    "bash": "_tinytf_checkpoints",
    "zsh": "_tinytf_checkpoints",
    "preamble": {
        "bash": """\
_tinytf_checkpoints() {
  compgen -W "best last" -- "$1"
  compgen -f -X '!*.ckpt' -- "$1"
  compgen -d -- "$1"
}
""",
        "zsh": """\
_tinytf_checkpoints() {
  _alternative 'newest:of the newest run:(best last)' 'files:checkpoint:_files -g "*.ckpt"'
}
""",
    },
}


def parser() -> CommandParser:
    """The flags of `tinytf completion`."""
    flags = CommandParser(prog="tinytf completion", description="Print the completions of a shell.", epilog=NOTES)
    flags.add_argument("shell", choices=("bash", "zsh"), help="which shell")
    return flags


def run(argv: list[str]) -> int:
    """Print a script that the shell evaluates."""
    shell = parser().parse_args(argv).shell
    # shtab writes the script. jsonargparse drives it too, but of one parser of its own, and it walks into whatever
    # classes are imported, as for the schema; so the flags of all commands are gathered here.
    import shtab

    print(shtab.complete(tree(), shell))
    return 0


def tree() -> argparse.ArgumentParser:
    """All commands with their flags, for a reader that knows argparse."""
    root = argparse.ArgumentParser(prog="tinytf")
    root.add_argument("-V", "--version", action="store_true", help="print the version")
    commands = root.add_subparsers()
    for name, (module, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        if name in TRAINER_COMMANDS:
            add_trainer_flags(command, name)
        else:
            for action in import_module(f"tinytf.cli.{module.partition(chr(58))[0]}").parser()._actions:
                add(command, action)
    return root


def add_trainer_flags(command: argparse.ArgumentParser, name: str) -> None:
    """Add the flags of one of LightningCLI's commands, those of our optimizers and schedules too."""
    from tinytf.cli.config.parser import parser_of

    for action in parser_of(name)._actions:
        add(command, action)
        for argument in injected(action):
            command.add_argument(f"--{action.dest}.{argument}", help=f"of the {action.dest.rpartition('.')[2]}")


def add(command: argparse.ArgumentParser, action: argparse.Action) -> None:
    """A flag like another, as far as its completion goes."""
    if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
        return
    flags = [flag for flag in action.option_strings if not flag.endswith((".help", "+"))]
    if action.option_strings and not flags:
        return
    if action.nargs == 0:
        added = command.add_argument(*flags, action="store_true")
    else:
        added = command.add_argument(*(flags or [action.dest]), choices=list(values(action)) or None)
    added.help = plain_help(action)
    if complete := completer(action):
        added.complete = complete  # type: ignore[attr-defined]


def plain_help(action: argparse.Action) -> str:
    """A flag's help without its default, in one line, as argparse wants it."""
    text = re.sub(r"\s*\([^()]*%\(default\)s[^()]*\)|default: %\(default\)s", "", action.help or "")
    return " ".join(text.replace("%%", "%").split()).replace("%", "%%")


def completer(action: argparse.Action) -> Any:
    """What shtab completes a flag's value with: files, folders, checkpoints; None where it is none of them."""
    import shtab

    if action.dest == "config":
        return shtab.glob(*YAML)
    if action.dest in ("ckpt_path", "diff"):
        return CHECKPOINTS
    if action.dest in FOLDERS:
        return shtab.DIRECTORY
    if action.dest in FILES or action.option_strings == ["--model"]:
        return shtab.FILE
    return None


def values(action: argparse.Action) -> Iterator[str]:
    """What may stand after a flag, where that can be listed."""
    if action.choices:
        yield from map(str, action.choices)
    elif kind := getattr(action, "_typehint", None):
        yield from values_of(kind)
    if action.dest in ("model.optimizer", "model.schedule"):
        from tinytf.cli.schema import path_of

        yield from map(path_of, classes(action))
    if action.dest == "data.corpus":
        from tinytf.data.sources import NAMES

        yield from NAMES


def values_of(kind: Any) -> Iterator[str]:
    """The values that a type can be written as, where it has only a few."""
    if kind is bool:
        yield from ("true", "false")
    elif get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif type(None) in get_args(kind) or any(get_origin(each) is Literal for each in get_args(kind)):
        for each in get_args(kind):
            yield from ("null",) if each is type(None) else values_of(each)


def classes(action: argparse.Action) -> list[type]:
    """The classes that may stand for the optimizer or the schedule."""
    from tinytf.cli.schema import OPTIMIZER, SCHEDULE, known_classes

    return known_classes(OPTIMIZER if action.dest == "model.optimizer" else SCHEDULE)


def injected(action: argparse.Action) -> list[str]:
    """The arguments of our own classes that a flag may name, such as --model.optimizer.lr."""
    if action.dest not in ("model.optimizer", "model.schedule"):
        return []
    own = [kind for kind in classes(action) if kind.__module__.startswith("tinytf.")]
    names = [name for kind in own for name in inspect.signature(kind).parameters if name != "params"]
    return list(dict.fromkeys(names))
