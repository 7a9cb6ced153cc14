"""`tinytf prepare`: tokenize a corpus ahead of `fit`, on a machine that may have no GPU. It does not import torch."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import jsonargparse

from tinytf.cli.config.errors import OneLineErrors
from tinytf.cli.config.files import ConfigFile, as_config, read_arguments
from tinytf.cli.config.keys import ConfigError, Keys, check_flags, unknown_key
from tinytf.cli.config.strict_yaml import STRICT
from tinytf.cli.main import quiet_libraries
from tinytf.data.build import prepare
from tinytf.data.config import CorpusConfig, PreparedCorpus
from tinytf.errors import UserError

DESCRIPTION = """\
Tokenize a corpus ahead of fit, which finds it in the cache then. Takes fit's config files, and reads their section
data. Killed and started again, it goes on with what is not finished.
"""

CORPUS = tuple(f"data.{field.name}" for field in fields(CorpusConfig))
BATCHES = ("data.batch_size", "data.global_batch_size", "data.seq_len", "data.num_workers", "data.mask_documents")
"""The other keys of fit's section data, which change nothing that is prepared: a config file may hold them."""


class Parser(OneLineErrors, jsonargparse.ArgumentParser):
    """Refuses in one line."""


def run(argv: list[str]) -> int:
    """Parse the flags, tokenize, print what came of it on stdout.

    Returns:
        The exit code.

    Raises:
        UserError: for settings or text that cannot be used.
    """
    quiet_libraries()
    arguments = read_arguments(argv)
    section = from_files(arguments.files)
    refuse_foreign_flags(arguments.flags)
    check_flags(arguments.flags, Keys(["json", *CORPUS], "tinytf prepare"))
    try:
        given = parser().parse_args([*as_config({"data": section}), *arguments.flags])
    except ConfigError as wrong:
        raise UserError(f"{arguments.location(wrong.key)}{wrong}") from None
    done = prepare(CorpusConfig(**vars(given.data)))
    print(json.dumps(report(done), indent=2) if given.json else text(report(done)))
    return 0


def parser() -> Parser:
    """The flags of `tinytf prepare`: the keys of fit's section data that decide token ids."""
    usage = "tinytf prepare [--config FILE ...] [--data.KEY VALUE ...] [--json]"
    flags = Parser(prog="tinytf prepare", usage=usage, description=DESCRIPTION, allow_abbrev=False, parser_mode=STRICT)
    flags.add_argument("-c", "--config", action="config", metavar="FILE", help="a config file of fit; may be repeated")
    flags.add_argument("--json", action="store_true", help="one JSON object on stdout")
    flags.add_class_arguments(CorpusConfig, "data")
    return flags


def from_files(files: list[ConfigFile]) -> dict[str, Any]:
    """What the config files say of the text, later ones winning; UserError for a key that fit does not know."""
    merged: dict[str, Any] = {}
    for file in files:
        section = file.content.get("data") or {}
        if not isinstance(section, dict):
            raise UserError(f"{file.location('data')}data: expected keys and values, got a {type(section).__name__}")
        for key in section:
            if f"data.{key}" not in CORPUS + BATCHES:
                wrong = unknown_key(f"data.{key}", CORPUS + BATCHES, "tinytf prepare")
                raise UserError(f"{file.location(wrong.key)}{wrong}")
        merged.update(section)
    return {key: value for key, value in merged.items() if f"data.{key}" in CORPUS}


def refuse_foreign_flags(flags: list[str]) -> None:
    """Refuse by name the flags of fit that change nothing here."""
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0]
        if flag.startswith("--") and "." in name and not name.startswith("data."):
            raise UserError(f"{name} is not for tinytf prepare, which takes --config and --data.…: leave it to fit")
        if flag.startswith("--") and name in BATCHES:
            raise UserError(f"{name} changes nothing that is prepared: leave it to fit")


def report(done: PreparedCorpus) -> dict[str, Any]:
    """What was prepared, in plain types."""
    return {**done.fingerprint, "dtype": done.store.dtype, "folder": str(done.store.folder)}


def text(said: dict[str, Any]) -> str:
    """The report as lines for a person."""
    counts, examples = said.get("split_documents", {}), said.get("split_examples", {})
    lines = [
        ("corpus", f"{said['corpus']}: {said['documents']:,} documents, {said['bytes'] / 1e6:,.1f} MB"),
        ("tokenizer", f"{said['tokenizer']}, {said['vocab_size']:,} entries"),
        *(
            (
                name,
                f"{tokens:,} tokens, {said['split_bytes'][name] / 1e6:,.1f} MB"
                + (f", {counts[name]:,} documents" if name in counts else "")
                if name not in examples
                else f"{tokens:,} tokens, {examples[name]:,} examples, "
                f"{said['split_learned_tokens'][name]:,} tokens of completions",
            )
            for name, tokens in said["split_tokens"].items()
        ),
        ("in", said["folder"]),
    ]
    return "\n".join(f"{label:<10} {value}" for label, value in lines)
