"""Errors of a command line: one line each, with the key, what was expected, and the nearest key that exists."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jsonargparse import ArgumentParser

from tinytf.errors import UserError

STEPS = "steps are the only unit: use trainer.max_steps and trainer.val_check_interval"
STREAM = "training data is one endless stream of windows"
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
    "trainer.barebones": "turn off what you do not want by its own key",
    "trainer.sync_batchnorm": "the model has no batch norm",
    "trainer.model_registry": "use tracking.mlflow or tracking.wandb",
    "weights_only": "checkpoints are never unpickled",
    "model.vocab_size": "the tokenizer decides it; data.vocab_size is what a bpe tokenizer is trained to",
    "model.bytes_per_token": "the data decides it",
    "model.seed": "use seed_everything",
    "data.seed": "use seed_everything",
    "config": "a file does not include others; give each with --config",
}
"""Keys that other programs have, or that are decided elsewhere: what to use."""


SETTINGS = ("Settings", "Config")
"""How the names of our classes end that a file writes as keys and values, without a class_path."""


class ConfigError(UserError):
    """One wrong key or value.

    Args:
        key: dotted; empty if the error concerns none.
        text: what is wrong, without the file and line.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class OneLineErrors(ArgumentParser):
    """A parser's refusals as `ConfigError`, which is one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        if not self.exit_on_error:  # A parser that tries one of several types.
            return super().error(message, ex)
        raise explain(message, ex) from None


# -- keys ----------------------------------------------------------------------------------------------------------


def unknown_key(key: str, known: Iterable[str]) -> ConfigError:
    """The error for a key that does not exist, with the nearest one that does."""
    if key in REFUSED:
        return ConfigError(key, f"{key} is not a setting of tinytf: {REFUSED[key]}")
    choices = list(known)
    near = difflib.get_close_matches(key, choices, n=1, cutoff=0.75)
    if near:
        return ConfigError(key, f"unknown key {key}; did you mean {near[0]}?")
    section = key.rpartition(".")[0]
    siblings = [name for name in choices if section and name.rpartition(".")[0] == section]
    hint = f"there are {', '.join(siblings)}" if 0 < len(siblings) <= 10 else "see tinytf fit --help"
    return ConfigError(key, f"unknown key {key}; {hint}")


def check_keys(content: Mapping[str, Any], keys: Keys, prefix: str = "") -> None:
    """Raise `ConfigError` at the first key of a config file that the parser does not have."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in REFUSED:
            raise unknown_key(key, ())
        if key in keys.sections:
            if isinstance(value, Mapping):
                check_keys(value, keys, f"{key}.")
            elif value is not None:
                raise ConfigError(key, f"{key}: expected keys and values, got {shown(value)}")
        elif key.removesuffix("+") not in keys.settings and not isinstance(name, str):
            raise ConfigError(str(key), f"{prefix}{name}: expected a text as key, got {shown(name)}")
        elif key.removesuffix("+") not in keys.settings:
            # The nearest key of a misspelled section is that of its first key.
            inner = f"{key}.{next(iter(value))}" if isinstance(value, Mapping) and value and not prefix else key
            raise unknown_key(inner, keys.settings)


def check_flags(flags: Iterable[str], keys: Keys) -> None:
    """Raise `ConfigError` at the first flag that the parser does not have."""
    for flag in flags:
        name = flag.partition("=")[0].removeprefix("--").removesuffix("+")
        if not flag.startswith("--") or name in ("help", "print_config") or name.endswith(".help"):
            continue
        if name in REFUSED and name != "config":
            raise unknown_key(name, ())
        inside_class = any(name.startswith(f"{key}.") for key in keys.settings)
        if name not in keys.settings and name not in keys.sections and not inside_class:
            raise unknown_key(name, keys.settings)


class Keys:
    """The keys of a parser: ``settings`` take a value (which may be a class with arguments), ``sections`` hold keys."""

    def __init__(self, dotted: Iterable[str]) -> None:
        dotted = list(dotted)
        classes = {key.removesuffix(".class_path") for key in dotted if key.endswith(".class_path")}
        inside = tuple(f"{key}." for key in classes)
        self.settings = [key for key in dotted if not key.startswith(inside)] + sorted(classes)
        parents = {key.rsplit(".", depth)[0] for key in self.settings for depth in range(1, key.count(".") + 1)}
        self.sections = parents - set(self.settings)

    def named_in(self, message: str) -> list[str]:
        """The settings that a message names; after the first, it leaves out the section if that is the same."""
        dotted = [word.rstrip(".") for word in re.findall(r"\b[a-z_]+(?:\.\w+)+", message)]
        section = dotted[0].rpartition(".")[0] if dotted else ""
        bare = [f"{section}.{word}" for word in re.findall(r"\w+", message)]
        return list(dict.fromkeys(key for key in [*dotted, *bare] if key in self.settings))


# -- values --------------------------------------------------------------------------------------------------------


def explain(message: str, error: BaseException | None) -> ConfigError:
    """jsonargparse's refusal of a value as one line.

    Its exceptions carry no fields, so the key, the type and the value are cut out of its text; what went wrong with a
    class is decided by the type of the exception at the root of the refusal.
    """
    key = _cut(r'Parser key "([^"]+)"', message)
    nested = _cut(r'Parser key "[^"]+":.*Parser key "([^"]+)"', message)
    if not key:
        text = " ".join(message.split()).removeprefix("argument ")
        stray = _cut(r"unrecognized arguments: (\S+)", message)
        return ConfigError("", f"{stray}: not a flag; settings are given as --key value" if stray else text)
    key = f"{key}.{nested}" if nested and nested != key else key
    kind = _cut(r"class_path[= ]'([\w.]+)'", message)
    value = shown(_cut(r"(?:Got value|Given value): (.*?)(?:\. Got value|$)", message))
    option = _cut(r"Option '([^']+)' is not accepted", message)
    required = _cut(r"arguments are required: ([\w, .]+)", message)
    if option:
        return unknown_key(f"{key}.{option}", [f"{key}.{name}" for name in _arguments_of(kind)])
    if required and kind:
        return ConfigError(key, f"{key}: {kind.rpartition('.')[2]} needs {required.rstrip('.')}; give it in init_args")
    missing = next((e for e in _causes(error) if isinstance(e, (ImportError, AttributeError))), None)
    if isinstance(missing, (ModuleNotFoundError, AttributeError)):
        return ConfigError(key, f"{key}: cannot import {kind or value} ({missing}); give the full path of a class")
    if "Unable to load config" in message:
        return ConfigError(key, f"{key}: expected keys and values; give them as --{key}.KEY VALUE")
    if short := _cut(r"Expected a dot import path string: (\S+)", message):
        return ConfigError(key, f"{key}: cannot import {short}; give the full path of a class")
    wanted = [_type_name(each) for each in re.findall(r"Expected an? (.+?)(?:\. Got value|\n|$)", message)]
    subclass = re.findall(r"[Nn]ot a valid subclass of (\w+)", message)
    wanted += ["keys and values" if name.endswith(SETTINGS) else f"the class_path of a {name}" for name in subclass]
    wanted += [
        f"a subclass of {name}" for name in re.findall(r"to be a subclass of <class '(?:\w+\.)*(\w+)'>", message)
    ]
    if wanted:
        return ConfigError(key, f"{key}: expected {' or '.join(dict.fromkeys(wanted))}, got {value or kind}")
    return ConfigError(key, f"{key}: {' '.join(message.partition(':')[2].split())[:300]}")


def _cut(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.DOTALL)
    return match[1] if match else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _arguments_of(kind: str) -> list[str]:
    """The arguments of a class that the parser has already imported."""
    module, _, name = kind.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return [name for name in inspect.signature(found).parameters if name != "params"] if callable(found) else []


def _type_name(kind: str) -> str:
    literal = re.search(r"Literal\[(.+)\]", kind)
    if literal:
        return literal[1].replace("'", "").replace(", ", " or ")
    words = {"int": "an integer", "float": "a number", "bool": "true or false", "NoneType": "null", "str": "a text"}
    name = re.search(r"<class '(?:.*\.)?(\w+)'>", kind)
    return words.get(name[1], f"a {name[1]}") if name else kind


def shown(value: Any) -> str:
    """A value as a config file writes it, short enough for a line."""
    text = " ".join(str(value).split())
    return {"None": "null", "True": "true", "False": "false"}.get(text, text[:80])
