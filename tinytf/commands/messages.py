"""The parser's complaints, each made one line: what is wrong, where, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

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


def explain(message: str, known: Iterable[str], configs: Iterable[str]) -> str:
    """One line for a message of jsonargparse.

    Args:
        message: as it came, often many lines.
        known: the dotted names of all keys.
        configs: the YAML files that were given, to say where a key stands.
    """
    key = re.search(r'[Kk]ey "([^"]+)"', message)
    inner = re.search(r"Option '([^']+)' is not accepted|does not accept (?:nested )?option '([^']+)'", message)
    flag = re.search(r"unrecognized arguments: (?:--)?([^\s=]+)", message)
    if inner:
        name = inner[1] or inner[2]
        return unknown(f"{key[1]}.{name}" if key and inner[1] else name, known, configs)
    if flag:
        return unknown(flag[1], known, configs)
    if key:
        return wrong_value(key[1], message, configs)
    return " ".join(message.split())


def unknown(key: str, known: Iterable[str], configs: Iterable[str]) -> str:
    """The message for a key that is none, with the nearest one that is."""
    where = place(key, configs)
    if key in REFUSED:
        return f"{where}{key} is not a setting of tinytf: {REFUSED[key]}"
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.75)
    return f"{where}unknown key {key}" + (f"; did you mean {near[0]}?" if near else "; see --print_config")


def wrong_value(key: str, message: str, configs: Iterable[str]) -> str:
    """The message for a value of the wrong type, with what was expected."""
    nested = re.search(r'Parser key "[^"]+":.*Parser key "([^"]+)"', message, re.DOTALL)
    key = f"{key}.{nested[1]}" if nested else key
    given = re.search(r"(?:Got value|Given value): (.*?)(?:\. Got value|$)", message, re.DOTALL)
    value = f", got {' '.join(given[1].split())[:80]}" if given else ""
    no_class = re.search(r"Expected a dot import path string: (\S+)", message)
    if no_class:
        return f"{place(key, configs)}{key}: {no_class[1]} is no class that can be imported; give its full name"
    wanted = [plain(kind) for kind in re.findall(r"Expected an? (.+?)(?:\. Got value|\n|$)", message)]
    if wanted:
        return f"{place(key, configs)}{key}: expected {' or '.join(dict.fromkeys(wanted))}{value}"
    rest = " ".join(message.split("\n", 1)[-1].split())
    return f"{place(key, configs)}{key}: {rest[:300]}"


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
    if not isinstance(node, yaml.MappingNode):
        return None
    for name, value in node.value:
        if name.value == parts[0]:
            return name.start_mark.line + 1 if len(parts) == 1 else line_of(value, parts[1:])
        if name.value == "init_args":  # Which a dotted name leaves out.
            inside = line_of(value, parts)
            if inside is not None:
                return inside
    return None
