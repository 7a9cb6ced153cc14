"""The commands and the keys as Markdown, from what the command line itself is made of."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from tinytf.cli.fit import SEED, CommandLine, Parser
from tinytf.cli.main import COMMANDS
from tinytf.data import TextDataModule
from tinytf.run.tracking_settings import MlflowSettings, ProfileSettings, WandbSettings
from tinytf.training import Linear, MuonAdamW
from tinytf.training.lightning_module import LanguageModel
from tinytf.training.trainer import Trainer

CLASSES = {
    "model.optimizer": MuonAdamW,
    "model.schedule": Linear,
    "tracking.wandb": WandbSettings,
    "tracking.mlflow": MlflowSettings,
    "tracking.profile": ProfileSettings,
}
"""Whose arguments follow a key that takes a class; with another class they are that class's."""

OWN_WORDS = {
    "ckpt_path": "A checkpoint to go on from: a path, or best or last, those of the newest run.",
    "trainer.logger": "Further loggers of Lightning, beside those of tracking; false means none at all.",
}
"""Where Lightning's own words are about Lightning's own behaviour, which is not this one."""

Row = tuple[str, str, str]


class FitParser(CommandLine):
    """The command line with its parser, and nothing run."""

    def __init__(self) -> None:
        super().__init__(
            LanguageModel, TextDataModule, trainer_class=Trainer, seed_everything_default=SEED, parser_class=Parser,
            args=[], auto_configure_optimizers=False, load_from_checkpoint_support=False,
        )  # fmt: skip

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = {"subcommand": None}

    def _set_seed(self) -> None: ...

    def instantiate_classes(self) -> None: ...


def commands() -> str:
    """One row a command."""
    return table(("command", "what it does"), [(f"`tinytf {name}`", text) for name, (_, text) in COMMANDS.items()])


def keys() -> str:
    """One row a key of a config, with its default and its help."""
    rows = [row for action in FitParser()._subcommand_parsers["fit"]._actions for row in rows_of(action)]
    return table(("key", "default", "what it does"), rows)


def rows_of(action: Any) -> Iterator[Row]:
    key = action.dest
    if type(action).__name__ != "ActionTypeHint":  # A help flag, a section, or a key that follows another.
        return
    default = class_name(action.default) or shown(action.default)
    yield f"`{key}`", default, sentence(OWN_WORDS.get(key) or action.help)
    if key in CLASSES:
        parser = LightningArgumentParser()
        skip = {"params"} & set(inspect.signature(CLASSES[key]).parameters)
        parser.add_class_arguments(CLASSES[key], skip=skip)
        for inner in parser._actions:
            if type(inner).__name__ == "ActionTypeHint":
                yield f"`{key}.{inner.dest}`", shown(inner.default), sentence(inner.help)


def class_name(default: Any) -> str | None:
    path = default.get("class_path") if isinstance(default, dict) else getattr(default, "class_path", None)
    return f"`{path.rsplit('.', 1)[-1]}`" if path else None


def shown(value: Any) -> str:
    """A default as a YAML file says it."""
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


def sentence(text: str) -> str:
    """A help text without its Sphinx marks and its repeated default; Lightning's own cut after the first sentence."""
    flat = " ".join((text or "").split())
    flat = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", flat).replace("``", "`")
    flat = re.sub(r"\s*Default: `[^`]*`\.?", "", flat).replace("|", "\\|").replace("<", "&lt;")
    first = re.match(r"(.+?[.;])(?= [A-Z])", flat)
    if "`" in flat and first:
        flat = first[1]
    return flat


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    rule = tuple("---" for _ in head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


SECTIONS = {"commands": commands, "keys": keys}


def with_tables(readme: str) -> str:
    """README with each marked section made anew.

    Raises:
        ValueError: where a section's marks are missing.
    """
    for name, make in SECTIONS.items():
        begin, end = f"<!-- {name}: made by make docs -->\n", f"<!-- /{name} -->"
        head, found, rest = readme.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"README.md has no section {begin.strip()} … {end}")
        readme = f"{head}{begin}\n{make()}\n\n{end}{tail}"
    return readme
