"""What a command takes over from a checkpoint's config, and which of its settings cannot be changed.

A checkpoint of the user's own runs is taken over whole. One from anywhere else is a stranger's: it gives its numbers,
and whatever names a class, a path, an address, a number of processes or a destination is the user's to give again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tinytf.cli.config.validate import is_ours
from tinytf.data.config import OF_BASE
from tinytf.data.sources.builtin import BUILTIN
from tinytf.data.tokenizer import tokenizer_from_text
from tinytf.errors import UserError
from tinytf.run.run import Resume
from tinytf.utils.files import shorten
from tinytf.utils.text import flatten, public
from tinytf.weights.adapter import AdapterConfig

SHAPE = tuple(
    f"model.{key}"
    for key in ("d_model", "n_heads", "n_layers", "n_kv_heads", "head_dim", "d_ff", "qk_norm", "tie_embeddings")
)
ADAPTER = tuple(f"model.adapter.{key}" for key in ("rank", "alpha", "targets"))
TOKENIZER = ("data.tokenizer", "data.vocab_size", "data.bpe_sample_bytes")
TEXT = ("seq_len", "val_fraction", "test_fraction", "split_by", "text_field")
"""Not the corpora: their texts are compared, by checksum, when they are read; a path may be spelled anew or moved."""
TRAINING = (
    "model.optimizer.class_path",
    "model.freeze",
    *(f"data.{key}" for key in TEXT),
    "seed_everything",
)
WHY = {
    "model.adapter.alpha": "an adapter's weights were trained for what they are multiplied by, alpha / rank",
    "model.adapter.targets": "an adapter's weights are those of its targets",
    "model.adapter.rank": "an adapter's weights are of its rank",
    "model": "a checkpoint's shape is that of its weights",
    "model.optimizer": "its state is that of its class",
    "model.freeze": "the optimizer's state is that of what was trained",
    "model.optimizer.init_args": "a scheduler of torch takes each learning rate from the one before",
    "model.schedule": "a scheduler of torch takes each learning rate from the one before",
    "data": "a resumed run continues with the text it has begun",
    "seed_everything": "the order of the data depends on it",
}

WORDS: dict[str, Collection[str] | None] = {
    "data.corpus": BUILTIN,
    "data.val_corpus": BUILTIN,
    "data.test_corpus": BUILTIN,
    "data.tokenizer": ("char", "bpe", OF_BASE),
    "data.split_by": None,
    "data.text_field": None,
    "model.compile": None,
    "model.freeze": None,
    "model.adapter.targets": None,
    "model.on_nonfinite": None,
    "model.rope_scaling.rope_type": None,
    "model.weight_decay_on": None,
    "trainer.gradient_clip_algorithm": None,
    "trainer.matmul_precision": None,
    "trainer.precision": None,
}
"""Texts of a stranger's config that name nothing outside tinytf: these, or (None) whatever the parser takes."""

OURS_TO_DECIDE = (
    "data.num_workers",
    "data.prepare_processes",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "tracking.git_diff",
    "tracking.hostname",
    "export.at_end",
)
"""Numbers that are no numbers of the model: how many processes run here, and what is told of this machine."""

TEXT_OF_TRAINING = ("data.corpus", "data.val_corpus", "data.test_corpus")
NEEDED = {
    "fit": (*TEXT_OF_TRAINING, "model.optimizer", "model.schedule", "trainer.callbacks", "trainer.plugins"),
    "validate": TEXT_OF_TRAINING,
    "test": TEXT_OF_TRAINING,
    "predict": TEXT_OF_TRAINING,
}
"""What a command cannot do without: another default in its place would be another training, or another measurement."""

log = logging.getLogger(__name__)


def own_defaults(command: str, config: Mapping[str, Any], ckpt: Path) -> dict[str, Any]:
    """What a command takes over from a checkpoint of the user's, as if it were the first ``--config`` file.

    A resumed run takes all of it. An evaluation takes what decides its numbers: model, data, seed, precision.
    """
    for section in ("trainer", "model", "data", "checkpoint", "tracking"):
        if not isinstance(config.get(section), Mapping) or "class_path" in config[section]:
            raise UserError(f"checkpoint {ckpt}: its config has no section {section}")
    if command == "fit":
        return {key: value for key, value in config.items() if key != "ckpt_path"}
    model = {key: value for key, value in config["model"].items() if key not in ("optimizer", "schedule")}
    precision = {key: config["trainer"][key] for key in ("precision", "matmul_precision") if key in config["trainer"]}
    # Validation never runs compiled blocks, so there is nothing to wait for.
    taken = {"trainer": precision, "model": {**model, "compile": False}, "data": config["data"]}
    return {**taken, **{key: config[key] for key in ("seed_everything", "name") if key in config}}


def strangers_defaults(
    command: str, config: Mapping[str, Any], ckpt: Path, usual: Mapping[str, Any], given: Collection[str]
) -> dict[str, Any]:
    """What a command takes over from any other checkpoint: the numbers of `own_defaults`.

    Args:
        command: fit, or an evaluation.
        config: the checkpoint's.
        ckpt: its file, for messages.
        usual: the parser's defaults: what is equal to them need not be given again.
        given: the keys that the user's flags and config files set.

    Raises:
        UserError: naming all that the command needs and that the user has not given.
    """
    named: dict[str, str] = {}
    taken = numbers(own_defaults(command, config, ckpt), usual, named)
    missing = [f"{key} ({shorten(value, 60)})" for key, value in named.items() if key not in given]
    # Other checkpoints have all weights that their base had.
    needs = NEEDED[command] + (("model.base",) if look_up(config, "model.adapter") else ())
    needed = [text for text in missing if text.partition(" ")[0] in needs]
    if needed:
        raise UserError(
            f"checkpoint {ckpt} is not of a run in checkpoint.dir, so nothing is opened, imported or addressed because "
            f"it says so: give again {', '.join(needed)}"
        )
    if missing and command == "fit":
        log.info("not taken over from %s, which is not of a run in checkpoint.dir: %s", ckpt, ", ".join(missing))
    return taken


def name_tokenizer(config: Any, usual: Any, resume: Resume, given: Collection[str]) -> None:
    """Write into the config of a run that goes on from a stranger's where its tokenizer is, if only that file has it.

    The base or the tokenizer.json that the file names is not taken over; without either, config.yaml would describe
    another run. The file itself has weights and tokenizer, and is the user's word.
    """
    kind = look_up(resume.entry["config"], "data.tokenizer")
    if kind in ("char", "bpe") or config.model.base is not None or "data.tokenizer" in given:
        return
    tokenizer = tokenizer_from_text(resume.entry["tokenizer"], f"in checkpoint {resume.path}")
    config.model.base, config.data.tokenizer = str(resume.path), OF_BASE
    config.data.vocab_size, config.data.bpe_sample_bytes = tokenizer.get_vocab_size(), usual.data.bpe_sample_bytes


def numbers(
    config: Mapping[str, Any], usual: Mapping[str, Any], named: dict[str, str], prefix: str = ""
) -> dict[str, Any]:
    """The part of a config that names nothing; what is left out, and is not as usual, is put into ``named``."""
    taken: dict[str, Any] = {}
    for name, value in config.items():
        key, default = f"{prefix}{name}", usual.get(name) if isinstance(name, str) else None
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            # The arguments are of the class: they are numbers of the usual one alone.
            if value.get("class_path") == default.get("class_path"):
                taken[name] = numbers(value, default, named, f"{key}.")
            else:
                named[key] = str(value.get("class_path"))
        elif (
            (
                isinstance(value, Mapping)
                and default is None
                and all(is_plain(f"{key}.{inner}", each) for inner, each in value.items())
            )
            or value == default
            or (key not in OURS_TO_DECIDE and is_plain(key, value))
        ):
            taken[name] = value
        elif key not in OURS_TO_DECIDE:
            named[key] = str(value)
    return taken


def is_plain(key: str, value: Any) -> bool:
    """Whether a value is a number, a list of numbers, or a text that names nothing outside tinytf."""
    values, words = value if isinstance(value, list) and value else [value], WORDS.get(key, ())
    return all(
        (words is None or each in words)
        if isinstance(each, str)
        else each is None or isinstance(each, (bool, int, float))
        for each in values
    )


def refuse_contradictions(entry: Mapping[str, Any], ckpt: Path) -> None:
    """Refuse a checkpoint whose config is of another model than its weights: what it says twice must be the same.

    Its weights are built by the one, and a run or an evaluation by the other.
    """
    section = entry["config"].get("model")
    if not isinstance(section, Mapping):
        return
    pairs = [(f"model.{key}", section[key], value) for key, value in entry["model"].items() if key in section]
    if section.get("adapter") is not None or entry.get("adapter") is not None:
        try:
            config, own = (
                None if value is None else AdapterConfig.from_mapping(value).plain()
                for value in (section.get("adapter"), entry.get("adapter"))
            )
        except UserError as error:
            raise UserError(f"checkpoint {ckpt}: {error}") from None
        if config and own:
            pairs += [(f"model.adapter.{key}", config[key], value) for key, value in own.items()]
        else:
            pairs.append(("model.adapter", config, own))
    problems = [
        f"checkpoint {ckpt}: its config has {key} {shorten(repr(config), 60)}, but its weights are of "
        f"{shorten(repr(own), 60)}: it was written by no run, and is not used"
        for key, config, own in pairs
        if config != own
    ]
    if problems:
        raise UserError(*problems)


def refuse_changes(
    command: str, now: Mapping[str, Any], saved: Mapping[str, Any], ckpt: Path, given: Collection[str] = ()
) -> None:
    """Refuse, by name, each setting given now that a checkpoint has already fixed otherwise."""
    changed, missing = [], []
    if bool(look_up(saved, "model.adapter")) != bool(look_up(now, "model.adapter")):
        holds = "an adapter" if look_up(saved, "model.adapter") else "a whole model"
        raise UserError(f"model.adapter: {ckpt} holds {holds}, and is not resumed as the other; start a new run")
    fixed = (*SHAPE, *ADAPTER, *TOKENIZER, *((*TRAINING, *arguments_of_torch(now, saved)) if command == "fit" else ()))
    for key in fixed:
        old, new = look_up(saved, key), look_up(now, key)
        if key == "data.tokenizer" and old not in ("char", "bpe", OF_BASE) and key not in given:
            continue  # Read from the checkpoint, which has its content, whatever its path was.
        if old != new and not has(saved, key):
            missing.append(key)
        elif old != new:
            why = next(WHY[prefix] for prefix in prefixes(key) if prefix in WHY)
            changed.append(f"{key} is {new} here but {old} in {ckpt}: {why}")
    # An adapter's may lie elsewhere now: its sha256 is compared.
    whole = not look_up(saved, "model.adapter")
    if whole and "model.base" in given and look_up(now, "model.base") != look_up(saved, "model.base"):
        changed.append(
            f"model.base is {look_up(now, 'model.base')} here but {look_up(saved, 'model.base')} in {ckpt}: "
            "a resumed run has its weights"
        )
    if missing:
        raise UserError(f"checkpoint {ckpt}: its config has no {', '.join(missing)}")
    if changed:
        raise UserError(*changed)


def arguments_of_torch(now: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """What cannot change under a scheduler of torch, whose state has all it was built from; nothing under ours."""
    kind, before = (str(look_up(config, "model.schedule.class_path")) for config in (now, saved))
    if all(name.startswith("tinytf.") for name in (kind, before)):
        return []
    if kind != before:
        return ["model.schedule.class_path"]
    if is_ours(kind):
        return []
    arguments = flatten({key: look_up(now, key) or {} for key in ("model.schedule", "model.optimizer.init_args")})
    return [key for key, _ in arguments]


def look_up(config: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted key; None where the config has none."""
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def has(config: Mapping[str, Any], dotted: str) -> bool:
    """Whether a config has a dotted key, be its value null."""
    section, _, name = dotted.rpartition(".")
    inside = look_up(config, section) if section else config
    return isinstance(inside, Mapping) and name in inside


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
