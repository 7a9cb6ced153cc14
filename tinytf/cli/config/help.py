"""`tinytf fit --help`: a line a key, by section; `--help SECTION` and `--help KEY` say all there is to say.

argparse would print 85 lines of usage, and of each class key every class that happens to be imported.
"""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, get_args, get_origin

import torch
import yaml
from jsonargparse import ArgumentParser

from tinytf.cli.config.keys import ConfigError, unknown_key
from tinytf.cli.config.resume import SHAPE, TOKENIZER
from tinytf.cli.config.validate import import_class
from tinytf.cli.main import COMMANDS
from tinytf.training.optim.schedules import Schedule

SECTIONS = {
    "run": "the config, the checkpoint to start from, the name",
    "trainer": "how long, how exactly and on what it runs: Lightning's Trainer",
    "model": "the transformer",
    "optimizer": "a class and its arguments",
    "schedule": "the learning rate over the steps, a class and its arguments",
    "data": "from text to batches of token ids",
    "checkpoint": "what is saved, when, and where",
    "tracking": "what is recorded about a run, besides metrics.jsonl",
    "export": "the files that are made of the best checkpoint",
}

EVALUATION = {
    "run": "config ckpt_path name print_config verbose return_predictions",
    "trainer": "accelerator strategy devices num_nodes precision matmul_precision limit_{}_batches enable_progress_bar "
    "deterministic benchmark inference_mode profiler detect_anomaly callbacks plugins",
    "model": "base max_seq_len rope_theta rope_scaling norm_eps",
    "data": "batch_size seq_len num_workers corpus val_fraction test_fraction val_corpus test_corpus cache_dir "
    "split_by text_field prepare_processes mask_documents",
    "checkpoint": "dir",
}
"""What validate, test and predict use: the rest is fixed by the weights or is of training alone."""

OPTIMIZER, SCHEDULE = torch.optim.Optimizer, Schedule
"""What a config may put in their place by class."""

FALLBACK_WIDTH = 100
"""Columns where stdout is no terminal: less, a file, a web page."""


@dataclass(frozen=True)
class Key:
    """What the help says of a key.

    Args:
        name: dotted.
        kind: the values it takes.
        default: as a config writes it; None for what is no setting.
        text: its docstring.
    """

    name: str
    kind: str
    default: str | None
    text: str

    @property
    def section(self) -> str:
        parts = self.name.split(".")
        return "run" if len(parts) == 1 else parts[1] if parts[1] in ("optimizer", "schedule") else parts[0]

    @property
    def values(self) -> str:
        return ", ".join(filter(None, (self.kind, self.default and f"default {self.default}")))


def topic_of(argv: Iterable[str]) -> str | None:
    """What follows --help, empty if nothing does; None if the command line does not ask for help."""
    given = iter(argv)
    for argument in given:
        flag, _, topic = argument.partition("=")
        if flag in ("-h", "--help"):
            following = next(given, "")
            return topic or ("" if following.startswith("-") else following)
    return None


def help_text(parser: Any, command: str, topic: str = "") -> str:
    """What ``tinytf COMMAND --help TOPIC`` prints.

    Raises:
        ConfigError: if the topic is neither a section nor a key of the command.
    """
    width = shutil.get_terminal_size((FALLBACK_WIDTH, 24)).columns
    every = list(keys_of(parser))
    keys = every if command == "fit" else [key for key in every if is_used(key.name, command)]
    if not topic:
        return "\n".join(overview(keys, command, width))
    found = [key for key in keys if key.section == topic]
    found = found or [key for key in keys if f".{topic}." in f".{key.name}."]
    if not found and any(topic in (key.name, key.section) for key in every):
        raise ConfigError(topic, f"--help {topic}: {command} does not use it; see tinytf fit --help {topic}")
    if not found:
        raise unknown_key(topic, [*SECTIONS, *(key.name for key in keys)], f"tinytf {command}")
    return "\n".join(line for key in found for line in in_full(key, parser, width)).rstrip()


def keys_of(parser: Any) -> Iterator[Key]:
    """Each key of a parser of fit, validate, test or predict, and the arguments of its classes."""
    for action in parser._actions:
        if action.dest in ("config", "print_config"):
            yield Key(action.dest, "", None, text_of(action))
        # The others are help flags, the flags of whole sections, and keys that are linked to another.
        if type(action).__name__ != "ActionTypeHint":
            continue
        path = action.default.get("class_path") if isinstance(action.default, dict) else None
        kind = " | ".join(dict.fromkeys(kinds(action._typehint)))
        yield Key(action.dest, kind, path.rpartition(".")[2] if path else as_written(action.default), text_of(action))
        inner = ArgumentParser()
        classes: list[Any] = [import_class(path)] if path else list(filter(is_dataclass, get_args(action._typehint)))
        for each in classes:
            inner.add_class_arguments(each, action.dest, skip={"params"} & set(inspect.signature(each).parameters))
        yield from keys_of(inner)


def text_of(action: Any) -> str:
    return " ".join((action.help or "").replace("%%", "%").split())


def kinds(hint: Any) -> Iterator[str]:
    """The values that a type takes, in words."""
    words = {bool: "bool", int: "int", float: "float", str: "text", type(None): "null"}
    if hint in words:
        yield words[hint]
    elif get_origin(hint) is Literal:
        yield from map(str, get_args(hint))
    elif is_dataclass(hint):
        yield "keys and values"
    elif get_origin(hint) in (list, tuple, Sequence):
        yield "list"
    elif get_args(hint) and "Callable" not in str(hint):
        for each in get_args(hint):
            yield from kinds(each)
    elif "Path" not in str(hint):
        yield "class"


def as_written(value: Any) -> str:
    """A default as a config writes it."""
    plain = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(plain, default_flow_style=True, width=1000)).removesuffix("...\n").strip()


def is_used(name: str, command: str) -> bool:
    """Whether validate, test or predict use a key."""
    section, _, rest = name.partition(".") if "." in name else ("run", "", name)
    split = {"validate": "val"}.get(command, command)
    return rest.partition(".")[0] in EVALUATION.get(section, "").format(split).split()


def refuse_unused(command: str, flags: Iterable[str]) -> None:
    """Raise `ConfigError` at a flag that validate, test or predict would ignore.

    A file of --config may hold such keys: it is that of the training. What the weights fix is compared with them later.
    """
    for flag in flags if command != "fit" else ():
        name = flag.partition("=")[0].removeprefix("--").removesuffix("+")
        if flag.startswith("--") and not is_used(name, command) and name not in SHAPE + TOKENIZER:
            raise ConfigError(name, f"--{name}: {command} does not use it; see tinytf {command} --help")


# -- the screen ----------------------------------------------------------------------------------------------------


def overview(keys: list[Key], command: str, width: int) -> Iterator[str]:
    """All keys, one sentence of each."""
    start = "[--config FILE ...]" if command == "fit" else "--ckpt_path FILE|RUN|best|last"
    yield f"usage: tinytf {command} {start} [--KEY VALUE ...]"
    yield f"       tinytf {command} --help [SECTION|KEY]"
    about = COMMANDS[command][1]
    taken = "" if command == "fit" else " What is not given is taken from the checkpoint."
    yield from paragraph(
        f"{about[0].upper()}{about[1:]}. A KEY is set by a flag or in a YAML file; later files win over earlier ones, "
        f"and flags over files.{taken} --help with the name of a section or a key says more.",
        width,
    )
    for section, about in SECTIONS.items():
        found = [key for key in keys if key.section == section]
        if not found:
            continue
        yield from paragraph(f"{section}: {about}", width)
        column = min(4 + max(len(f"--{key.name}") for key in found), width // 2 - 4)
        for key in found:
            flag = f"  --{key.name}  "
            if len(flag) > column + 2:
                yield flag.rstrip()
                flag = ""
            sentence = f"{capital(first_sentence(key.text))}{f' ({key.values})' if key.values else ''}"
            yield from wrapped(sentence, width, column, flag.ljust(column))


def in_full(key: Key, parser: Any, width: int) -> Iterator[str]:
    """All that is said of one key."""
    yield from wrapped(f"--{key.name}  {key.values}", width, 4, "")
    yield from wrapped(capital(key.text), width, 4)
    base = {"model.optimizer": OPTIMIZER, "model.schedule": SCHEDULE}.get(key.name)
    if base:
        yield from wrapped(f"Classes: {', '.join(map(path_of, known_classes(base)))}, or any other.", width, 4)
    if "class" in key.kind and f"--{key.name}.help" in parser._option_string_actions:
        yield from wrapped(f"{parser.prog} --{key.name}.help CLASS lists the arguments of a class.", width, 4)
    yield ""


def first_sentence(text: str) -> str:
    """The first whole sentence: a point inside a name, a number or a list of suffixes ends none."""
    return re.split(r"(?<=[.])\s+(?=[A-Z])", text, maxsplit=1)[0]


def capital(text: str) -> str:
    """A text with a capital, unless it begins with a value (auto, null) or a name (torch.compile)."""
    word = re.match(r"[a-z-]+(?=[ ,;])", text)
    is_word = word and word[0] not in ("auto", "null", "true", "false", "norm", "char")
    return text[0].upper() + text[1:] if is_word else text


def paragraph(text: str, width: int) -> list[str]:
    return ["", *textwrap.wrap(text, width)]


def wrapped(text: str, width: int, indent: int, start: str | None = None) -> list[str]:
    """Lines of a text after ``start``, the next ones indented; words with a dash stay whole."""
    first = " " * indent if start is None else start
    room = max(width, indent + 20)
    return textwrap.wrap(
        text, room, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
    )


# -- classes -------------------------------------------------------------------------------------------------------


def known_classes(base: type) -> list[type]:
    """The classes whose arguments are described; others are taken by their full name, with any arguments."""
    import tinytf.training

    named = [getattr(module, name) for module in (tinytf.training, torch.optim) for name in sorted(module.__all__)]
    return [kind for kind in named if isinstance(kind, type) and issubclass(kind, base) and kind is not base]


def path_of(kind: type) -> str:
    """The name by which a config gives one of the known classes."""
    room = "torch.optim" if kind.__module__.startswith("torch.") else "tinytf.training"
    return f"{room}.{kind.__name__}"
