"""jsonargparse's refusals as one line each: the key, what was expected, the nearest key that exists."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentParser

from tinytf.cli.config.keys import ConfigError, shown, unknown_key

SETTINGS = ("Settings", "Config", "Scaling")
"""How the names of our classes end that a file writes as keys and values, without a class_path."""


class OneLineErrors(ArgumentParser):
    """A parser's refusals as `ConfigError`, which is one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        if not self.exit_on_error:  # A parser that tries one of several types.
            return super().error(message, ex)
        raise explain(message, ex, self.prog) from None


def explain(message: str, error: BaseException | None, command: str) -> ConfigError:
    """jsonargparse's refusal of a value as one line.

    Its exceptions carry no fields, so the key, the type and the value are cut out of its text; what went wrong with a
    class is decided by the type of the exception at the root of the refusal.
    """
    key = _cut(r'Parser key "([^"]+)"', message)
    nested = _cut(r'Parser key "[^"]+":.*Parser key "([^"]+)"', message)
    if not key:
        text = " ".join(message.split()).removeprefix("argument ")
        stray = _cut(r"unrecognized arguments: (\S+)", message)
        return ConfigError(
            "", f"{stray}: not a flag; settings are given as --key value, see {command} --help" if stray else text
        )
    key = f"{key}.{nested}" if nested and nested != key else key
    kind = _cut(r"class_path[= ]'([\w.]+)'", message)
    value = shown(_cut(r"(?:Got value|Given value): (.*?)(?:\. Got value|\s+- Expected an? |$)", message))
    option = _cut(r"Option '([^']+)' is not accepted", message)
    required = _cut(r"arguments are required: ([\w, .]+)", message)
    if option:
        return unknown_key(f"{key}.{option}", [f"{key}.{name}" for name in _arguments_of(kind)], command)
    if required and kind:
        return ConfigError(key, f"{key}: {kind.rpartition('.')[2]} needs {required.rstrip('.')}; give it in init_args")
    missing = next((e for e in causes(error) if isinstance(e, (ImportError, AttributeError))), None)
    if isinstance(missing, (ModuleNotFoundError, AttributeError)):
        near = nearest_class(kind or value)
        hint = f"did you mean {near}?" if near else "give the full path of a class"
        return ConfigError(key, f"{key}: cannot import {kind or value} ({missing}); {hint}")
    if "Unable to load config" in message:
        return ConfigError(key, f"{key}: expected keys and values; give them as --{key}.KEY VALUE")
    short = _cut(r"Expected a dot import path string: (\S+)", message)
    # torch's optimizers take a tensor for a number too: who gives a word has not meant a class.
    is_number = re.search(r"Expected an? <class '(?:int|float)'>", message)
    # Of a class of ours or null, jsonargparse takes a word for the path of a class.
    if short and re.search(r"Subtypes: \[<class 'tinytf\.[\w.]+'>, <class 'NoneType'>\]", message):
        return ConfigError(key, f"{key}: expected keys and values or null, got {short}; give them as --{key}.KEY VALUE")
    if short and not is_number:
        return ConfigError(key, f"{key}: cannot import {short}; give the full path of a class")
    types = re.findall(r"Expected an? (?!dot import)(.+?)(?:\. Got value|\n|$)", message)
    wanted = [_type_name(each) for each in types]
    subclass = re.findall(r"[Nn]ot a valid subclass of (\w+)", message)
    wanted += ["keys and values" if name.endswith(SETTINGS) else f"the class_path of a {name}" for name in subclass]
    wanted += [
        f"a subclass of {name}" for name in re.findall(r"to be a subclass of <class '(?:\w+\.)*(\w+)'>", message)
    ]
    if "null" in wanted and value == "null":
        value = "None"  # What the user typed; of null itself the type would have taken note.
    if wanted:
        return ConfigError(key, f"{key}: expected {' or '.join(dict.fromkeys(wanted))}, got {value or kind}")
    return ConfigError(key, f"{key}: {' '.join(message.partition(':')[2].split())[:300]}")


def _cut(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.DOTALL)
    return match[1] if match else ""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _arguments_of(kind: str) -> list[str]:
    """The arguments of a class that the parser has already imported."""
    module, _, name = kind.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return [name for name in inspect.signature(found).parameters if name != "params"] if callable(found) else []


def nearest_class(path: str) -> str | None:
    """A class of the same module, which is imported already, whose name is nearest to a mistyped one."""
    module, _, name = path.rpartition(".")
    classes = {
        each.lower(): each for each, found in vars(sys.modules.get(module, object)).items() if isinstance(found, type)
    }
    near = difflib.get_close_matches(name.lower(), classes, n=1)
    return f"{module}.{classes[near[0]]}" if near else None


def _type_name(kind: str) -> str:
    literal = re.search(r"Literal\[(.+)\]", kind)
    if literal:
        return literal[1].replace("'", "").replace(", ", " or ")
    words = {"int": "an integer", "float": "a number", "bool": "true or false", "NoneType": "null", "str": "a text"}
    name = re.search(r"<class '(?:.*\.)?(\w+)'>", kind)
    return words.get(name[1], f"a {name[1]}") if name else kind
