"""`tinytf config-schema`: the YAML files as a JSON Schema, so that an editor completes keys and marks typos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch

# jsonargparse describes a parser as draft 2020-12, with defaults and help; its public way to it,
# get_completion_script("jsonschema"), was seen to fail on this parser. It walks into every subclass of Callback,
# Logger and Strategy that happens to be imported, so that the result hangs on what is installed, and ends in a
# TypeError at one whose argument is a class of classes. Of classes it does not know it takes none, not even with the
# name in full. Hence its generator with classes described here; its name is private and pinned by a test.
from jsonargparse._completions_jsonschema import ParserJsonschema
from torch.optim.lr_scheduler import LRScheduler

from tinytf.cli.config.flags import CommandParser
from tinytf.cli.config.help import OPTIMIZER, SCHEDULE, known_classes, path_of
from tinytf.cli.config.keys import REFUSED
from tinytf.cli.config.parser import parser_of
from tinytf.export.formats import FORMATS, GROUPS

NOTES = """\
Written to a file, it is named in the first line of a config: # yaml-language-server: $schema=tinytf.schema.json
Editors with YAML support (VS Code with the YAML extension, Neovim, JetBrains, …) read that line.
"""


def parser() -> CommandParser:
    """`tinytf config-schema` has no flags but --help."""
    return CommandParser(
        prog="tinytf config-schema", description="Print a JSON Schema of the YAML files.", epilog=NOTES
    )


def run(argv: list[str]) -> int:
    """Print the schema."""
    parser().parse_args(argv)
    print(json.dumps(schema(), indent=2, ensure_ascii=False))
    return 0


def schema() -> dict[str, Any]:
    """A config of `tinytf fit` as a JSON Schema (draft 2020-12): the same on every machine and Python."""
    described = ConfigSchema().generate(parser_of("fit"))  # type: ignore[no-untyped-call]
    described["title"] = "tinytf config"
    described["description"] = "A run of tinytf fit, or an overlay on one."
    for key in REFUSED:
        forget(described, key.split("."))
    formats = described["properties"]["export"]["properties"]["formats"]
    formats["items"]["enum"] = [*FORMATS, *GROUPS]
    properties = described["properties"]
    # With a plus, an overlay's are added to those that there are.
    trainer = described["properties"]["trainer"]["properties"]
    trainer["callbacks+"] = trainer["callbacks"]
    for node in sections(described):
        node["properties"].pop("$schema", None)
    return {"$schema": described.pop("$schema"), "title": described.pop("title"), **described, "properties": properties}


def forget(node: dict[str, Any], parts: list[str]) -> None:
    """Leave out a key that the parser knows and a file may not hold."""
    *sections, leaf = parts
    for part in sections:
        node = node["properties"][part]
    node["properties"].pop(leaf, None)


def sections(node: Any) -> Iterator[dict[str, Any]]:
    """Every object of the schema that states its keys."""
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            yield node
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        yield from sections(child)


class ConfigSchema(ParserJsonschema):
    """jsonargparse's generator, with the classes a config may name: ours and PyTorch's optimizers, and any other."""

    def action_schema(self, action: Any, required: bool, consts: Any) -> dict[str, Any]:
        """The schema of a key, its help in one line, and null as default where that is allowed."""
        described: dict[str, Any] = super().action_schema(action, required, consts)
        if "description" in described:
            described["description"] = " ".join(described["description"].split())
        if "default" not in described and not required and action.default is None and self.allows_null(described):
            described["default"] = None
        return described

    def typehint_schema(self, typehint: Any, action: Any) -> dict[str, Any]:
        """The schema of a type."""
        if typehint is torch.Tensor:  # A learning rate that may be one; a file can only say the number.
            return {"type": "number"}
        described: dict[str, Any] = super().typehint_schema(typehint, action)
        return described

    def subclass_def(self, class_type: type, action: Any) -> dict[str, Any]:
        found = known_classes(class_type) if class_type in (OPTIMIZER, SCHEDULE) else []
        paths = {kind: path_of(kind) for kind in found}
        described = [self._known(kind, path, action) for kind, path in paths.items()]
        # The key takes one of our schedules or a scheduler of torch: the names of ours are not for the latter.
        ours = known_classes(SCHEDULE) if class_type is LRScheduler else found
        names = [name for kind in ours for name in (path_of(kind), kind.__name__)]
        return {"anyOf": [{"type": "string"}, *described, other_class(names), *only_arguments(found)]}

    def _known(self, kind: type, path: str, action: Any) -> dict[str, Any]:
        described: dict[str, Any] = self.class_path_schema(path, action)
        described["properties"]["class_path"] = {"enum": [path, kind.__name__]}
        described["properties"].pop("dict_kwargs")
        if issubclass(kind, torch.optim.Optimizer):
            forget(described, ["init_args", "params"])  # They are the model's.
            del described["properties"]["init_args"]["required"], described["required"]
            described["required"] = ["class_path"]
        return described


def other_class(known: list[str]) -> dict[str, Any]:
    """A class of the user's own, by its full name."""
    path: dict[str, Any] = {"type": "string", "description": "The full name of a class."}
    if known:
        path["not"] = {"enum": known}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {"class_path": path, "init_args": {"type": "object"}, "dict_kwargs": {"type": "object"}},
        "required": ["class_path"],
    }


def only_arguments(known: list[type]) -> list[dict[str, Any]]:
    """An overlay that changes arguments, of whatever class the file below it names."""
    if not known:
        return []
    return [
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {"init_args": {"type": "object"}},
            "required": ["init_args"],
        }
    ]
