"""`tinytf prepare`: tokenise a corpus ahead of `fit`, on a machine that may have no GPU."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import jsonargparse
from docstring_parser import parse as parse_docstring

import tinytf.data
from tinytf.cli.config.errors import ConfigError, Keys, check_flags, explain, unknown_key
from tinytf.cli.config.files import ConfigFile, read_arguments
from tinytf.cli.console import quiet_libraries
from tinytf.data.prepare import prepare
from tinytf.data.settings import Prepared, TextSettings
from tinytf.errors import UserError

DESCRIPTION = """\
Tokenise a corpus ahead of fit, which finds it in the cache then. Takes fit's config files, and reads their section
data. Killed and started again, it goes on with what is not finished.
"""


def run(argv: list[str]) -> int:
    """Parse the flags, tokenise, print what came of it on stdout.

    Returns:
        The exit code.

    Raises:
        UserError: for settings or text that cannot be used.
    """
    quiet_libraries()
    arguments = read_arguments(argv)
    settings = parser()
    section = from_files(arguments.files)
    refuse_foreign_flags(arguments.flags)
    check_flags(arguments.flags, Keys(["json", *Parser.known]))
    try:
        given = settings.parse_args(["--config", json.dumps({"data": section}), *arguments.flags])
    except ConfigError as wrong:
        raise UserError(f"{arguments.location(wrong.key)}{wrong}") from None
    done = prepare(TextSettings(**vars(given.data)))
    print(json.dumps(report(done), indent=2) if given.json else text(report(done)))
    return 0


class Parser(jsonargparse.ArgumentParser):
    """Complains in one line."""

    known: tuple[str, ...] = ()

    def error(self, message: str, ex: Exception | None = None) -> Any:
        if not self.exit_on_error:  # A parser that tries one of several types.
            return super().error(message, ex)
        raise explain(message, ex)


def parser() -> Parser:
    """The flags of `tinytf prepare`: the keys of fit's section data that decide what is prepared."""
    help_lines = data_settings()
    Parser.known = tuple(f"data.{name}" for name in help_lines)
    flags = Parser(prog="tinytf prepare", description=DESCRIPTION, allow_abbrev=False)
    flags.add_argument("-c", "--config", action="config", metavar="FILE", help="a config file of fit; may be repeated")
    flags.add_argument("--json", action="store_true", help="one JSON object on stdout")
    flags.add_class_arguments(TextSettings, "data")
    for action in flags._actions:
        action.help = help_lines.get(action.dest.removeprefix("data."), action.help)
    return flags


def data_settings() -> dict[str, str]:
    """The settings of the section data, with their help lines.

    Read from the source: importing the class would import Lightning, which takes seconds and is not needed.
    """
    source = Path(tinytf.data.__file__).with_name("module.py").read_text(encoding="utf-8")
    (module,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "TextDataModule"
    )
    (init,) = (node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    lines = {each.arg_name: each.description or "" for each in parse_docstring(ast.get_docstring(module) or "").params}
    names = [argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)]
    return {name: lines[name] for name in names if name not in ("self", "seed")}


def from_files(files: list[ConfigFile]) -> dict[str, Any]:
    """What the config files say of the text, later ones winning; UserError for a key that fit does not know."""
    merged: dict[str, Any] = {}
    for file in files:
        section = file.content.get("data") or {}
        if not isinstance(section, dict):
            raise UserError(f"{file.location('data')}data: expected keys and values, got a {type(section).__name__}")
        for key in section:
            if f"data.{key}" not in Parser.known:
                raise UserError(f"{file.location(f'data.{key}')}{unknown_key(f'data.{key}', Parser.known)}")
        merged.update(section)
    return {key: value for key, value in merged.items() if key in decisive()}


def decisive() -> set[str]:
    """The settings that decide what is prepared; the others are for batches."""
    return set(TextSettings.__dataclass_fields__)


def refuse_foreign_flags(flags: list[str]) -> None:
    """Refuse by name the flags of fit that change nothing here."""
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0]
        if flag.startswith("--") and "." in name and not name.startswith("data."):
            raise UserError(f"{name} is not for tinytf prepare, which takes --config and --data.…: leave it to fit")
        if flag.startswith("--data.") and name in Parser.known and name.removeprefix("data.") not in decisive():
            raise UserError(f"{name} changes nothing that is prepared: leave it to fit")


def report(done: Prepared) -> dict[str, Any]:
    """What was prepared, in plain types."""
    return {**done.fingerprint, "dtype": done.store.dtype, "folder": str(done.store.folder)}


def text(said: dict[str, Any]) -> str:
    """The report as lines for a person."""
    counts = said.get("split_documents", {})
    lines = [
        ("corpus", f"{said['corpus']}: {said['documents']:,} documents, {said['bytes'] / 1e6:,.1f} MB"),
        ("tokenizer", f"{said['tokenizer']}, {said['vocab_size']:,} entries"),
        *(
            (
                name,
                f"{tokens:,} tokens, {said['split_bytes'][name] / 1e6:,.1f} MB"
                + (f", {counts[name]:,} documents" if name in counts else ""),
            )
            for name, tokens in said["split_tokens"].items()
        ),
        ("in", said["folder"]),
    ]
    return "\n".join(f"{label:<10} {value}" for label, value in lines)
