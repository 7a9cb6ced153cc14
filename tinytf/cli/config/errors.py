"""The parser's complaints, each made one line: what is wrong, and what was probably meant."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

from tinytf.errors import UserError

STEPS = "steps are the unit of everything here: use trainer.max_steps and trainer.val_check_interval"
STREAM = "the training text is one endless stream"
REFUSED = {
    "trainer.max_epochs": STEPS,
    "trainer.min_epochs": STEPS,
    "trainer.check_val_every_n_epoch": STEPS,
    "trainer.limit_train_batches": f"{STREAM}; shorten the run with trainer.max_steps",
    "trainer.overfit_batches": f"{STREAM}; to overfit, give a short file as data.corpus",
    "trainer.reload_dataloaders_every_n_epochs": STREAM,
    "trainer.use_distributed_sampler": f"{STREAM}, and each process reads its own part of it",
    "trainer.max_time": f"{STEPS}; to stop at a time, send a signal, such as by timeout --signal=TERM 2h tinytf fit",
    "trainer.default_root_dir": "use checkpoint.dir",
    "trainer.enable_checkpointing": "use checkpoint.save_top_k and checkpoint.every_n_steps",
    "trainer.fast_dev_run": "use configs/tiny.yaml, or trainer.max_steps 2",
    "trainer.barebones": "switch off what is not wanted by its own key",
    "trainer.sync_batchnorm": "there is no batch norm in the model",
    "weights_only": "checkpoints are never unpickled",
    "model.vocab_size": "the tokenizer decides it; data.vocab_size is what a bpe tokenizer is trained to",
    "model.seed": "use seed_everything",
    "data.seed": "use seed_everything",
}


class Complaint(UserError):  # noqa: N818 - what the parser says, not what it is
    """The parser's one line about one key.

    Args:
        key: dotted; empty where it is about none.
        text: what is wrong, without the place.
        meant: the key that was probably meant.
    """

    def __init__(self, key: str, text: str, meant: str = "") -> None:
        super().__init__(text)
        self.key, self.meant = key, meant


def explain(message: str, known: Iterable[str]) -> Complaint:
    """A message of jsonargparse, often many lines, in one.

    Args:
        message: as it came.
        known: the dotted names of all keys.
    """
    key = re.search(r'[Kk]ey "([^"]+)"', message)
    inner = re.search(r"Option '([^']+)' is not accepted|does not accept (?:nested )?option '([^']+)'", message)
    flag = re.search(r"unrecognized arguments: (.*)", message, re.DOTALL)
    if inner and inner[1] and key:
        return unknown(f"{key[1]}.{inner[1]}", [f"{key[1]}.{name}" for name in arguments_of(message)])
    if inner:
        return unknown(inner[1] or inner[2], known)
    if flag:
        return unknown_flag(flag[1].split(), known)
    if key:
        return wrong_value(key[1], message)
    return Complaint("", " ".join(message.split()).removeprefix("argument "))


def arguments_of(message: str) -> list[str]:
    """The arguments of the class that a message is about, where the parser has imported it already."""
    named = re.search(r"class_path[= ]'([\w.]+)\.(\w+)'", message)
    kind = getattr(sys.modules.get(named[1]), named[2], None) if named else None
    return [name for name in inspect.signature(kind).parameters if name != "params"] if callable(kind) else []


def unknown_flag(words: list[str], known: Iterable[str]) -> Complaint:
    """The message for words that no flag takes, by the first of them."""
    if not words[0].startswith("-"):
        return Complaint("", f"{words[0]}: it belongs to no flag; settings are given as --key value")
    return unknown(words[0].lstrip("-").partition("=")[0], known)


def unknown(key: str, known: Iterable[str]) -> Complaint:
    """The message for a key that is none, with the nearest one that is."""
    if key in REFUSED:
        return Complaint(key, f"{key} is not a setting of tinytf: {REFUSED[key]}")
    choices = [name for name in known if not name.endswith(".help")]
    near = difflib.get_close_matches(key, choices, n=1, cutoff=0.75)
    if near:
        return Complaint(key, f"unknown key {key}; did you mean {near[0]}?", near[0])
    section = key.rpartition(".")[0]
    inside = [name for name in choices if section and name.rpartition(".")[0] == section]
    there = f"there are {', '.join(inside)}" if 0 < len(inside) <= 10 else "see tinytf fit --help"
    return Complaint(key, f"unknown key {key}; {there}")


def wrong_value(key: str, message: str) -> Complaint:
    """The message for a value of the wrong type, with what was expected."""
    if no_file := re.search(r"Unable to load config '([^']*)'", message):
        return Complaint(
            key, f"{key}: {no_file[1]} is no YAML file of this section; give its keys as --{key}.KEY VALUE"
        )
    nested = re.search(r'Parser key "[^"]+":.*Parser key "([^"]+)"', message, re.DOTALL)
    key = f"{key}.{nested[1]}" if nested else key
    return Complaint(key, f"{key}: {what_is_wrong(message)}")


def what_is_wrong(message: str) -> str:
    """The parser's reason, without the key."""
    kind = re.search(r"class_path[= ]'([\w.]+)'", message)
    given = re.search(r"(?:Got value|Given value): (.*?)(?:\. Got value|$)", message, re.DOTALL)
    value = f", got {as_yaml(given[1])}" if given else ""
    no_class = re.search(r"Expected a dot import path string: (\S+)", message)
    no_module = re.search(r"(No module named '[^']+')|(cannot import name '[^']+'|has no attribute '[^']+')", message)
    lacking = re.search(r"arguments are required: ([\w, .]+)", message)
    if no_class:
        return f"{no_class[1]} is no class that can be imported; give its full name"
    if no_module:
        name = kind[1] if kind else value.removeprefix(", got ")
        return f"{name} cannot be imported ({no_module[0]}); give the full name of an installed class"
    if lacking and kind:
        return f"{kind[1].rpartition('.')[2]} needs {lacking[1].rstrip('.')}: give it under init_args"
    wanted = [plain(each) for each in re.findall(r"Expected an? (.+?)(?:\. Got value|\n|$)", message)]
    wanted = [*(of_class(each) for each in re.findall(r"Not a valid subclass of (\w+)", message)), *wanted]
    if wanted:
        return f"expected {' or '.join(dict.fromkeys(wanted))}{value}"
    return " ".join(message.split("\n", 1)[-1].split())[:300]


def as_yaml(value: str) -> str:
    """What Python printed, as the file said it, and no longer than a look needs."""
    plain_value = " ".join(value.split())
    return {"None": "null", "True": "true", "False": "false"}.get(plain_value, plain_value[:80])


def of_class(name: str) -> str:
    """What is expected where a class of this name may stand."""
    return "keys and values" if name.endswith("Settings") else f"the class_path of a {name}"


def plain(kind: str) -> str:
    """A type as a person says it."""
    literal = re.search(r"Literal\[(.+)\]", kind)
    if literal:
        return literal[1].replace("'", "").replace(", ", " or ")
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null", "str": "a text"}
    name = re.search(r"<class '(?:.*\.)?(\w+)'>", kind)
    return words.get(name[1], name[1]) if name else kind


def place(key: str, configs: Iterable[str]) -> str:
    """``file:line: `` of a dotted key in the last YAML file that has it, or nothing."""
    found = ""
    for path in configs:
        try:
            node = yaml.compose(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            continue
        line = line_of(node, key.split("."))
        if line is not None:
            found = f"{path}:{line}: "
    return found


def line_of(node: yaml.Node | None, parts: list[str]) -> int | None:
    """The line, counted from 1, at which a key stands in a YAML mapping; None where it does not."""
    if isinstance(node, yaml.SequenceNode):
        return next((line for item in node.value if (line := line_of(item, parts))), None)
    if not isinstance(node, yaml.MappingNode):
        return None
    for name, value in reversed(node.value):  # Of two that are the same, YAML takes the last.
        if name.value == parts[0]:
            return name.start_mark.line + 1 if len(parts) == 1 else line_of(value, parts[1:])
        if name.value == "init_args":  # Which a dotted name leaves out.
            inside = line_of(value, parts)
            if inside is not None:
                return inside
    return None
