"""Checkpoint files: written whole or not at all; read intact or refused, plain types only, nothing in them executed."""

from __future__ import annotations

import errno
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer

from tinytf.data.tokenizer import end_of_text_id, tokenizer_from_text
from tinytf.errors import RunError, UserError
from tinytf.model import Transformer, TransformerConfig
from tinytf.utils.files import atomic_write, is_disk_full, sha256_of, shorten
from tinytf.utils.machine import usable_memory
from tinytf.weights.adapter import AdapterConfig, adapter_shapes, attach_adapter, merge_adapter

if TYPE_CHECKING:
    from tinytf.weights.base import BaseModel

FORMAT = 1
"""Version of the ``tinytf`` entry. Raise it when a reader of the old one would misread the new."""

ENTRY = {"model": dict, "tokenizer": str, "config": dict, "data": dict, "provenance": dict}
"""What the ``tinytf`` entry of format 1 has."""

PLAIN = (type(None), bool, int, float, str, torch.Tensor)
DEEPEST = 50
MOST_VALUES = 1_000_000
"""Values below an entry, one that stands in several places counted in each. A run of ours has some hundreds."""

MODEL_PREFIX = "model."
"""What the transformer's weights begin with in a checkpoint's ``state_dict``: the layout of ``transformers``."""

CANNOT_READ = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ETIMEDOUT}
"""Failures of the system that say nothing of the file; zipfile raises other OSErrors if an archive is damaged."""


def damage(path: Path) -> str | None:
    """What is wrong with the file as an archive, or None if every record's checksum is right.

    torch.save writes a zip archive with a CRC32 per record; torch.load does not check them.

    Raises:
        UserError: if the system cannot read the file, which may be whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except FileNotFoundError:
        return "it does not exist"
    except IsADirectoryError:
        return "it is a folder"
    except Exception as error:  # zipfile meets a damaged directory with a dozen types, UnicodeDecodeError among them.
        if isinstance(error, OSError) and error.errno in CANNOT_READ:
            raise UserError(f"checkpoint {path}: it cannot be read ({error.strerror})") from error
        return f"it is not a whole checkpoint archive ({error})"
    return _unreadable(path) if record is None else f"the checksum of its record {record} does not match"


def _unreadable(path: Path) -> str | None:
    """What torch's own reader, which is stricter about the archive's headers, finds wrong; it reads no weights."""
    try:
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return None  # Whole, but not ours: `read_checkpoint` refuses it.
    except Exception as error:
        return f"it is not a whole checkpoint archive ({str(error).split('. ')[0]})"
    return None


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint's content.

    Args:
        path: a local file.
        mmap: leave the weights on disk until they are touched; for a look at the ``tinytf`` entry alone.

    Raises:
        UserError: if the file is missing, damaged, not made by tinytf, made by a later format, or holds
            anything but tensors and plain types.
    """
    path = Path(path)
    wrong = damage(path)
    if wrong:
        raise UserError(f"checkpoint {path}: {wrong}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        # torch's own message advises weights_only=False, which would run whatever the file says.
        raise UserError(
            f"checkpoint {path}: it has more in it than tensors and plain types, so it is not loaded"
        ) from error
    entry = content.get("tinytf") if isinstance(content, dict) else None
    if not isinstance(entry, dict) or not isinstance(entry.get("format"), int):
        raise UserError(f"checkpoint {path}: it was not written by tinytf")
    if entry["format"] > FORMAT:
        raise UserError(
            f"checkpoint {path}: its format {entry['format']} is newer than the {FORMAT} this tinytf reads: upgrade"
        )
    missing = [key for key, kind in ENTRY.items() if not isinstance(entry.get(key), kind)]
    weights = content.get("state_dict")
    whole = isinstance(weights, dict) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in weights.items()
    )
    if missing or not whole or not isinstance(content.get("global_step"), int):
        raise UserError(
            f"checkpoint {path}: it is incomplete: it lacks {', '.join(missing) or 'its weights or its step'}"
        )
    callbacks = content.get("callbacks") or {}
    problem = odd_value("tinytf", entry, strict=True) or odd_value("callbacks", callbacks)
    if problem or not isinstance(callbacks, dict):
        raise UserError(f"checkpoint {path}: {problem or 'its entry callbacks is no dict'}")
    return content


def odd_value(name: str, entry: Any, *, strict: bool = False) -> str | None:
    """What of an entry tinytf does not write and its readers would fail at; None if there is nothing.

    torch's unpickler of plain types makes lists that hold themselves, and keys and values of a dozen types.

    Args:
        name: of the entry, for messages.
        entry: its value.
        strict: it is ours alone: keys are texts, and values are plain ones. The state of callbacks is of any library's.
    """
    waiting: list[tuple[Any, int]] = [(entry, 1)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST_VALUES:
            limit = f"{DEEPEST} levels deep" if depth > DEEPEST else f"{MOST_VALUES:,} values"
            return f"its entry {name} is more than {limit}"
        if isinstance(value, dict):
            odd = next((key for key in value if not isinstance(key, str)), None)
            if odd is not None and (strict or depth == 1):
                return f"its entry {name} has {shorten(repr(odd), 80)} as a key, which is no text"
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += [(inner, depth + 1) for inner in value]
        elif strict and not isinstance(value, PLAIN):
            return f"its entry {name} has a value of type {type(value).__name__}"
    return None


# -- writing ---------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """torch.save so that afterwards the file is either there whole or as it was before.

    Raises:
        RunError: if the disk is full or refuses the file.
    """
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns the operating system's error into a RuntimeError about a file position.
        of_torch = isinstance(error, RuntimeError)
        if of_torch and not re.search("PytorchStreamWriter|unexpected pos", str(error)):
            raise
        cause = error.__context__ if of_torch else error
        # Without a cause it is a write that took fewer bytes than it was given, which only a full disk does.
        full = is_disk_full(cause) or not isinstance(cause, OSError)
        reason = "the disk is full" if full else cause.strerror  # type: ignore[union-attr]
        if full:
            reason = f"{reason} ({shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free)"
        raise RunError(f"{path} cannot be written: {reason}; the run's older files are untouched") from error


# -- as a model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, its tokenizer, and what its checkpoint says of itself.

    Args:
        model: in float32 on the CPU, in eval mode; of a checkpoint of an adapter, the base with the adapter merged.
        tokenizer: its tokenizer.
        entry: the checkpoint's ``tinytf`` entry.
        step: optimizer steps behind the weights.
        path: the checkpoint, links resolved; None if the model is from elsewhere.
        unmerged: makes the model with its adapter beside the base, as it was trained; None if it has none.
    """

    model: Transformer
    tokenizer: Tokenizer
    entry: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    path: Path | None = None
    unmerged: Callable[[], Transformer] | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.entry.get("config", {}).get("name") or (self.path.parent.name if self.path else "tinytf"))

    @property
    def start_token(self) -> int | None:
        """What an empty prompt starts from, a token seen in training; None is a line feed."""
        stated = self.entry.get("data", {}).get("start_token")
        known = type(stated) is int and 0 <= stated < self.model.config.vocab_size
        return stated if known else end_of_text_id(self.tokenizer)

    @property
    def chat_template(self) -> str | None:
        """How its tokenizer writes conversations, in Jinja; None if nothing says so."""
        stated = self.entry.get("chat_template")
        return stated if isinstance(stated, str) else None

    @property
    def reference(self) -> Transformer:
        """What an export is compared with: the model as it was trained, an adapter beside its base."""
        return self.unmerged() if self.unmerged else self.model

    @cached_property
    def sha256(self) -> str | None:
        """Of the checkpoint, in hex; computed when first asked for."""
        return sha256_of(self.path) if self.path else None


def config_of(content: dict[str, Any]) -> TransformerConfig:
    """The model's config, by the ``tinytf`` entry."""
    config = TransformerConfig.from_mapping(content["tinytf"]["model"])
    # Before anything is built: a file may state a million layers, or positions that no memory has tables for.
    layers = {key.split(".")[2] for key in content["state_dict"] if key.startswith(f"{MODEL_PREFIX}layers.")}
    if config.n_layers != len(layers):
        raise ValueError(f"n_layers is {config.n_layers}, but it has weights of {len(layers)} layers")
    tables = 16 * config.max_seq_len * config.head_size
    if tables > (usable_memory() or tables):
        raise ValueError(f"max_seq_len is {config.max_seq_len}, which is more positions than fit into memory")
    return config


def adapter_of(content: dict[str, Any]) -> AdapterConfig | None:
    """The adapter whose weights the checkpoint holds in place of a model's; None if it holds a model's."""
    stated = content["tinytf"].get("adapter")
    return None if stated is None else AdapterConfig.from_mapping(stated)


def refuse_misfit(content: dict[str, Any], path: Path) -> None:
    """Refuse weights that are not those of the model that the file describes."""
    try:
        with torch.device("meta"):
            model, adapter = Transformer(config_of(content)), adapter_of(content)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        OverflowError,
        UserError,
    ) as error:  # torch refuses sizes past 2**63 so.
        why = " ".join(str(error).split())
        raise UserError(f"checkpoint {path}: its entry does not describe a model ({shorten(why)})") from None
    shapes = adapter_shapes(model, adapter) if adapter else {k: list(v.shape) for k, v in model.state_dict().items()}
    wanted = {f"{MODEL_PREFIX}{key}": shape for key, shape in shapes.items()}
    found = {key: list(value.shape) for key, value in content["state_dict"].items()}
    for key in sorted({*wanted, *found}):
        if wanted.get(key) != found.get(key):
            raise UserError(
                f"checkpoint {path}: its weights are not those of the model that it describes: "
                f"{key} is {found.get(key, 'missing')}, not {wanted.get(key, 'expected')}"
            )
    for key, value in content["state_dict"].items():
        # Those of a meta device load as nothing at all, and integers and complex numbers as their rounded likeness.
        if value.is_meta or value.layout != torch.strided or not value.is_floating_point():
            kind = "on no device" if value.is_meta else f"{value.layout}, {value.dtype}".replace("torch.", "")
            raise UserError(f"checkpoint {path}: its weight {key} is {kind}, not dense floating-point numbers")


def load_model(path: str | Path, base: str | None = None, *, own: bool = False) -> LoadedModel:
    """Rebuild model and tokenizer from a checkpoint alone; the model is in eval mode, on the CPU, in float32.

    A checkpoint of an adapter has no more than that: its base is opened too, and the adapter merged into it.

    Args:
        path: the checkpoint.
        base: of an adapter, its base model, as `open_base` takes it; None is the one that its config names.
        own: whether the checkpoint is of the user's own runs: what another's config names is not opened.

    Raises:
        UserError: as `read_checkpoint`, and where the weights are not those of the shape it states, or there is no
            base, or another.
    """
    # best.ckpt is a link that moves while a run trains: weights and sha256 must be those of one file.
    path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
    content = read_checkpoint(path)
    refuse_misfit(content, path)
    entry, adapter = content["tinytf"], adapter_of(content)
    tokenizer = tokenizer_from_text(entry["tokenizer"], f"in checkpoint {path}")
    config = config_of(content)
    weights = {
        key.removeprefix(MODEL_PREFIX): value
        for key, value in content["state_dict"].items()
        if key.startswith(MODEL_PREFIX)
    }
    if adapter:
        build = partial(_with_base, config, base_of_adapter(entry, path, base, own=own))
        model = build()
        merge_adapter(model, adapter, weights)
        unmerged = partial(_with_adapter, build, adapter, weights)
        return LoadedModel(model, tokenizer, entry, int(content["global_step"]), path, unmerged)
    if base is not None:
        raise UserError(f"--base {base}: checkpoint {path} holds a whole model, which needs no base; leave it out")
    model = Transformer(config)
    model.load_state_dict(weights)
    return LoadedModel(model.float().eval(), tokenizer, entry, int(content["global_step"]), path)


# -- adapters --------------------------------------------------------------------------------------------------


def base_of_adapter(entry: dict[str, Any], path: Path, given: str | None, *, own: bool) -> BaseModel:
    """The base model of a checkpoint's adapter, opened.

    Raises:
        UserError: if it must be given, cannot be opened, or is another than the adapter was trained on.
    """
    from tinytf.weights.base import open_base  # It reads checkpoints with this module.

    stated, section = entry.get("base"), entry["config"].get("model")
    known = stated if isinstance(stated, dict) else {}
    named = section.get("base") if own and isinstance(section, dict) else None
    place = given if given is not None else named
    if not isinstance(place, str):
        raise UserError(
            f"checkpoint {path}: it holds an adapter of {shorten(str(known.get('name')), 100)}, and is of no run of "
            "yours, so that is not opened because it says so: give the base model as --base"
        )
    opened = open_base(place)
    refuse_other_base(opened.identity, known, path)
    # The run goes on with the tokenizer of its checkpoint: of another, ids would mean other rows of the embedding.
    if opened.tokenizer.to_str() != tokenizer_from_text(entry["tokenizer"], f"in checkpoint {path}").to_str():
        raise UserError(
            f"checkpoint {path}: its adapter was trained with another tokenizer than model.base {opened.place} has "
            "now: give the base as it was"
        )
    try:
        opened.config_with(entry["model"])
    except UserError as error:
        problems = (problem.rpartition(": ")[0] for problem in error.problems)  # Without the advice, to leave it out.
        raise UserError(*(f"checkpoint {path}: its entry is not of this base: {each}" for each in problems)) from error
    return opened


def refuse_other_base(now: Mapping[str, Any], known: Mapping[str, Any], path: Any) -> None:
    """Raise UserError if an adapter was trained on other weights than those of the base that is opened for it."""
    name, sha256 = known.get("name"), known.get("sha256")
    if not isinstance(name, str) or not isinstance(sha256, str):
        raise UserError(f"checkpoint {path}: it holds an adapter, and does not say of which base: it cannot be used")
    if now["sha256"] != sha256:
        raise UserError(
            f"checkpoint {path}: its adapter was trained on {shorten(name, 100)} (sha256 "
            f"{sha256[:12]}), and model.base {now['name']} has other weights "
            f"({now['sha256'][:12]}): give that base"
        )


def _with_base(config: TransformerConfig, base: BaseModel) -> Transformer:
    model = Transformer(base.config_with(asdict(config)))
    base.load_into(model)
    return model.float().eval()


def _with_adapter(build: Callable[[], Transformer], config: AdapterConfig, weights: dict[str, Any]) -> Transformer:
    model = build()
    attach_adapter(model, config)
    model.load_state_dict(weights)
    return model.eval()
