"""How a checkpoint's own config becomes the parser's defaults, and which of its settings cannot be changed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tinytf.errors import UserError
from tinytf.utils.text import public

SHAPE = tuple(f"model.{key}" for key in ("d_model", "n_heads", "n_layers", "n_kv_heads", "d_ff", "qk_norm"))
TOKENIZER = ("data.tokenizer", "data.vocab_size", "data.bpe_sample_bytes")
TEXT = ("seq_len", "val_fraction", "test_fraction", "split_by", "text_field")
"""Not the corpora: their texts are compared, by checksum, when they are read; a path may be spelled anew or moved."""
TRAINING = (
    "model.optimizer.class_path",
    *(f"data.{key}" for key in TEXT),
    "seed_everything",
)
WHY = {
    "model": "a checkpoint's shape is that of its weights",
    "model.optimizer": "its state is that of its class",
    "data": "a resumed run goes on with the text it has begun",
    "seed_everything": "the order of the data hangs on it",
}
TRUSTED = ("torch.optim.", "tinytf.")
LIGHTNING = "lightning.pytorch."


def defaults(command: str, config: Mapping[str, Any], ckpt: Path, named: Collection[str] = ()) -> dict[str, Any]:
    """What a command takes over from a checkpoint's config, as if it were the first ``--config`` file.

    A resumed run takes all of it. An evaluation takes what decides its numbers: model, data, seed, precision.

    Args:
        command: fit, or an evaluation.
        config: the checkpoint's.
        ckpt: its file.
        named: words of the user's own flags and configs.

    Raises:
        UserError: where what is taken over names a class from outside tinytf and torch.optim, and the user does not.
            It would import a module because a file says so.
    """
    for section in ("trainer", "model", "data", "checkpoint", "tracking"):
        if not isinstance(config.get(section), Mapping):
            raise UserError(f"checkpoint {ckpt}: its config has no section {section}")
    if command == "fit":
        refuse_foreign(config, ckpt, named)
        taken = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
        return {key: value for key, value in taken.items() if key not in ("ckpt_path",)}
    model = {key: value for key, value in config["model"].items() if key not in ("optimizer", "schedule")}
    # Validation never runs compiled blocks, so there is nothing to wait for.
    taken = {
        "seed_everything": config["seed_everything"],
        "name": config["name"],
        "trainer": {
            "precision": config["trainer"]["precision"],
            "matmul_precision": config["trainer"].get("matmul_precision", "highest"),
        },
        "model": {**model, "compile": False},
        "data": config["data"],
    }
    refuse_foreign(taken, ckpt, named)
    return taken


def words(value: Any) -> Iterator[str]:
    """All that may name a class or a file in what the user gave: flags, or the content of a config."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from words(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from words(inner)
    elif isinstance(value, str):
        yield value
        yield from re.findall(r"[\w./-]+", value)


def refuse_foreign(config: Any, ckpt: Path, named: Collection[str], key: str = "") -> None:
    """Refuse what would be imported, or read as a further config, on the word of the file alone.

    The parser takes the name of a class, or of a YAML file, wherever a class may stand: in ``trainer`` and ``model``.
    """
    if isinstance(config, Mapping):
        for name, value in config.items():
            refuse_foreign(value, ckpt, named, f"{key}.{name}".lstrip("."))
    elif isinstance(config, (list, tuple)):
        for value in config:
            refuse_foreign(value, ckpt, named, key)
    elif isinstance(config, str) and not config.startswith(TRUSTED):
        # The parser completes a short name to a class of Lightning's; of another package, the user's word is the whole.
        if config in named or (config.startswith(LIGHTNING) and config.rpartition(".")[2] in named):
            return
        may_be_class = key.startswith(("trainer.", "model.")) and ("." in config or "/" in config)
        if may_be_class or key.endswith("class_path"):
            raise UserError(
                f"checkpoint {ckpt}: its {key.removesuffix('.class_path')} is {config}, which is not imported on a "
                f"file's word; give it again, in a flag or a --config"
            )


def refuse_changes(command: str, now: Mapping[str, Any], saved: Mapping[str, Any], ckpt: Path) -> None:
    """Refuse, by name, each setting given now that a checkpoint has already fixed otherwise."""
    changed = []
    for key in SHAPE + TOKENIZER + (TRAINING if command == "fit" else ()):
        old, new = look_up(saved, key), look_up(now, key)
        if old != new:
            why = next(WHY[prefix] for prefix in prefixes(key) if prefix in WHY)
            changed.append(f"{key} is {new} here but {old} in {ckpt}: {why}")
    if changed:
        raise UserError(*changed)


def look_up(config: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted key; None where the config has none."""
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def prefixes(key: str) -> list[str]:
    """A dotted key and each of its sections, the longest first."""
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def notice_of_other_text(now: Mapping[str, Any], saved: Mapping[str, Any], ckpt: Path) -> str | None:
    """What to say before measuring on a text of the same name that is not the one of training; None where it is."""
    same = all(saved.get(key, now[key]) == now[key] for key in ("sha256", "split"))
    if same or public(now["corpus"]) != saved.get("corpus"):
        return None
    return (
        f"data.corpus {now['corpus']}: its text or its parts are not those of the training of {ckpt}; what is measured "
        "now may have been trained on"
    )
