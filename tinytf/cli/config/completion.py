"""`tinytf completion`: what the Tab key does, for bash and zsh.

shtab writes the script from argparse parsers, and a `jsonargparse` parser is one. (jsonargparse's own --print_shtab is
of one parser, without its subcommands, and describes whatever classes happen to be imported.)
"""

from __future__ import annotations

import argparse
import inspect
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

import shtab

from tinytf.cli.config.files import preset_names
from tinytf.cli.config.flags import CommandParser
from tinytf.cli.config.help import OPTIMIZER, SCHEDULE, is_used, known_classes, path_of
from tinytf.cli.config.parser import parser_of
from tinytf.cli.main import COMMANDS, TRAINER_COMMANDS
from tinytf.data.sources.builtin import BUILTIN

NOTES = """\
bash: eval "$(tinytf completion bash)"       in ~/.bashrc
zsh:  eval "$(tinytf completion zsh)"        in ~/.zshrc, after compinit
"""

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

CONFIGS = {
    "bash": "_tinytf_configs",
    "zsh": "_tinytf_configs",
    "preamble": {
        "bash": f"""\
_tinytf_configs() {{
  compgen -W "{" ".join(preset_names())}" -- "$1"
  compgen -f -X '!*.y*ml' -- "$1"
  compgen -d -- "$1"
}}
""",
        "zsh": f"""\
_tinytf_configs() {{
  _alternative 'shipped:shipped config:({" ".join(preset_names())})' 'files:config:_files -g "*.y(a|)ml"'
}}
""",
    },
}

RUN_NAMES = {
    "bash": "_tinytf_run_names",
    "zsh": "_tinytf_run_names",
    "preamble": {
        "bash": """\
_tinytf_run_names() {
  ( cd checkpoints 2>/dev/null && compgen -d -- "$1" )
}
""",
        "zsh": """\
_tinytf_run_names() {
  _path_files -/ -W checkpoints
}
""",
    },
}
"""The shell looks at the folder of runs that is the default: it cannot ask for checkpoint.dir."""

COMPLETERS: dict[str, Any] = {
    **dict.fromkeys(("--config", "-c"), CONFIGS),
    "--name": RUN_NAMES,
    **dict.fromkeys(("--ckpt_path", "--diff"), CHECKPOINTS),
    **dict.fromkeys(("--output_dir", "--root", "--checkpoint.dir", "--data.cache_dir", "folder"), shtab.DIRECTORY),
    **dict.fromkeys(("--prompt_file", "--text", "--model", "--data.val_corpus", "--data.test_corpus"), shtab.FILE),
}
"""What may follow a flag, if it is a file."""

CLASSES = {"model.optimizer": OPTIMIZER, "model.schedule": SCHEDULE}


def parser() -> CommandParser:
    """The flags of `tinytf completion`."""
    flags = CommandParser(prog="tinytf completion", description="Print the completions of a shell.", epilog=NOTES)
    flags.add_argument("shell", choices=("bash", "zsh"), help="which shell")
    return flags


def run(argv: list[str]) -> int:
    """Print a script that the shell evaluates."""
    print(shtab.complete(tree(), parser().parse_args(argv).shell))
    return 0


def tree() -> argparse.ArgumentParser:
    """All commands with their flags; for completion alone, as flags get choices that parsing would refuse."""
    root = argparse.ArgumentParser(prog="tinytf")
    root.add_argument("-V", "--version", action="store_true", help="print the version")
    commands = root.add_subparsers()
    for name, (place, about) in COMMANDS.items():
        commands.add_parser(name, help=about)
        module = import_module(f"tinytf.cli.{place.partition(':')[0]}")
        command = commands.choices[name] = parser_of(name) if name in TRAINER_COMMANDS else module.parser()
        for action in parser_of("fit")._actions if name == "plan" else ():  # It takes the keys of fit too.
            if action.option_strings[:1] != ["-h"]:
                command._add_action(action)
        if name in TRAINER_COMMANDS and name != "fit":  # It refuses the others.
            command._actions[:] = [each for each in command._actions if each.dest == "help" or is_used(each.dest, name)]
        complete_values(command)
    return root


def complete_values(command: argparse.ArgumentParser) -> None:
    """Give each flag of a command what may follow it."""
    for action in list(command._actions):
        kind = getattr(action, "_typehint", None)
        names = action.option_strings or [action.dest]
        completer = next((COMPLETERS[name] for name in names if name in COMPLETERS), None)
        if completer:
            action.complete = completer  # type: ignore[attr-defined]
        elif action.dest == "data.corpus":
            action.choices = BUILTIN
        elif action.dest in CLASSES:
            classes = known_classes(CLASSES[action.dest])
            action.choices = list(map(path_of, classes))
            own = [kind for kind in classes if kind.__module__.startswith("tinytf.")]
            for name in dict.fromkeys(name for kind in own for name in inspect.signature(kind).parameters):
                command.add_argument(f"--{action.dest}.{name}", help=f"of the {action.dest.rpartition('.')[2]}")
        elif kind and not action.choices:
            action.choices = values_of(kind) or None


def values_of(kind: Any) -> list[str]:
    """The values that a type can be written as, if it has only a few."""
    if kind is bool:
        return ["true", "false"]
    if kind is type(None):
        return ["null"]
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind)))
    return [value for each in get_args(kind) for value in values_of(each)]
