"""A base model: pretrained weights that training starts from, wherever they lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tinytf.data.sources.files import raised_by
from tinytf.data.sources.hub import HUB, HUB_PACKAGES
from tinytf.data.tokenizer import tokenizer_from_text
from tinytf.errors import UserError
from tinytf.model import Transformer, TransformerConfig
from tinytf.model.config import ConfigurationError, RopeScaling
from tinytf.model.transformer import rotary_tables
from tinytf.utils.files import open_user_file, read_text, sha256_of, shorten, user_path
from tinytf.utils.text import public
from tinytf.weights.checkpoint import MODEL_PREFIX, config_of, read_checkpoint, refuse_misfit
from tinytf.weights.huggingface import CONFIG, PICKLES, SMALL, HuggingFaceFolder

BUNDLE = "export.json"
BUNDLED = "huggingface"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
DERIVED = ("n_kv_heads", "head_dim", "d_ff")
"""Settings whose null says nothing: others decide them then."""

FREE = ("dropout",)
"""Settings of the model that are the user's: they change nothing that the weights were trained to compute."""


@dataclass(frozen=True)
class BaseModel:
    """A pretrained model that is open: its config, tokenizer and template, with the weights still on disk.

    Args:
        place: as the user named it, without what may be a credential.
        kind: its architecture: qwen3, llama, mistral, smollm3, or tinytf for a checkpoint.
        config: of the network; its ``vocab_size`` may be larger than the tokenizer, if the embedding is padded.
        tokenizer: its tokenizer.
        chat_template: Jinja, or None if it has none.
        revision: the commit of a repository; None for files of this machine.
        load_into: copies the weights into a `Transformer` of this config, tensor by tensor.
        hash_weights: the sha256 of the weights' file, in hex; it reads all of it.
    """

    place: str
    kind: str
    config: TransformerConfig
    tokenizer: Tokenizer
    chat_template: str | None
    revision: str | None
    load_into: Callable[[Transformer], None]
    hash_weights: Callable[[], str]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What it is, in plain types, for checkpoints and journals; computed when first asked for."""
        return {"name": self.place, "kind": self.kind, "revision": self.revision, "sha256": self.hash_weights()}

    @property
    def settings(self) -> dict[str, Any]:
        """Its config as the section ``model`` holds it: without the vocabulary, which is the tokenizer's."""
        return {key: value for key, value in asdict(self.config).items() if key != "vocab_size"}

    def build(self, config: TransformerConfig) -> Transformer:
        """A model with these weights, of a config that `config_with` gave; nothing random is drawn for it."""
        with torch.device("meta"):
            model = Transformer(config)
        # Drawing the weights that are overwritten takes 4 s of 135M parameters, loading them 1 s.
        model.to_empty(device="cpu")
        model.cos, model.sin = rotary_tables(config)
        self.load_into(model)
        return model

    def config_with(self, given: Mapping[str, Any]) -> TransformerConfig:
        """Its config with the user's settings, of which only those may differ that leave the weights' function alone.

        Args:
            given: arguments of `TransformerConfig`. ``vocab_size`` may be the tokenizer's, which a padded embedding
                exceeds; null for n_kv_heads, head_dim and d_ff says nothing.

        Raises:
            UserError: naming each setting that contradicts the base.
        """
        own = self.settings
        longer = given.get("max_seq_len", 0) > self.config.max_seq_len
        scaling = _plain_scaling(given["rope_scaling"]) if "rope_scaling" in given else own["rope_scaling"]
        problems, changes = [], {}
        for key, value in given.items():
            if key == "vocab_size":
                if value > self.config.vocab_size:
                    problems.append(
                        f"the tokenizer has {value:,} entries, but the embedding of model.base {self.place} has rows "
                        f"for {self.config.vocab_size:,}: use the base's own tokenizer"
                    )
            elif key in FREE:
                changes[key] = value
            elif key == "max_seq_len":
                changes[key] = value
                if longer and scaling in (None, own["rope_scaling"]):
                    problems.append(
                        f"model.max_seq_len is {value}, but model.base {self.place} knows {self.config.max_seq_len} "
                        "positions: a longer context needs a model.rope_scaling that says how to stretch them"
                    )
            elif key == "rope_scaling":
                if scaling == own["rope_scaling"]:
                    continue
                changes[key] = scaling
                if not longer:
                    problems.append(
                        f"model.rope_scaling is {shorten(scaling, 80)}, but that of model.base {self.place} is "
                        f"{shorten(own[key], 80)}: another one is for a model.max_seq_len above its "
                        f"{self.config.max_seq_len}"
                    )
            elif value is None and key in DERIVED:
                continue
            elif key in own and value != own[key]:
                problems.append(
                    f"model.{key} is {value}, but that of model.base {self.place} is {own[key]}: leave it out"
                )
        if problems:
            raise UserError(*problems)
        try:
            return replace(self.config, **changes)
        except ConfigurationError as error:
            raise UserError(*(f"model.{problem}" for problem in error.problems)) from None


def _plain_scaling(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    value = (
        asdict(value) if isinstance(value, RopeScaling) else dict(value if isinstance(value, Mapping) else vars(value))
    )
    try:
        return asdict(RopeScaling(**value))
    except TypeError:  # TransformerConfig says what is wrong with it.
        return value


def open_base(place: str | BaseModel, *, weights: bool = True) -> BaseModel:
    """Open a pretrained model, recognized by what it is.

    Args:
        place: a Hugging Face folder, ``hf://owner/name`` (with ``?revision=…``), a tinytf checkpoint, a run's folder
            (its best checkpoint) or a bundle of `tinytf export` (its ``huggingface`` folder). One that is open already
            is returned as it is.
        weights: look at the weights too, and fetch them from the hub; without, config and tokenizer alone.

    Raises:
        UserError: if it is none of these, or cannot be used: the message names file and property.
    """
    if isinstance(place, BaseModel):
        return place
    if place.startswith(HUB):
        return _from_hub(place, weights)
    if "://" in place:
        raise UserError(f"model.base {public(place)}: expected a folder, a file or hf://owner/name")
    path = user_path(place, what="model.base")
    if not path.exists():
        raise UserError(f"model.base {place}: there is no such file or folder")
    if not path.is_dir():
        return _from_checkpoint(path, place)
    if (path / BUNDLE).is_file():
        if not (path / BUNDLED / CONFIG).is_file():
            raise UserError(
                f"model.base {place}: it is a bundle without {BUNDLED}/: export it with --formats huggingface"
            )
        path = path / BUNDLED
    if not (path / CONFIG).exists():
        checkpoint = _checkpoint_in(path)
        if checkpoint is None:
            raise UserError(
                f"model.base {place}: {CONFIG} is missing: expected a Hugging Face folder, a bundle, or a run's folder "
                "with a best.ckpt"
            )
        return _from_checkpoint(checkpoint, place)
    return _from_folder(HuggingFaceFolder(path, place), place, None, weights)


def complete(config: TransformerConfig) -> TransformerConfig:
    """The config with what follows from others stated, and without the dropout, which is none of the weights'."""
    return replace(config, n_kv_heads=config.kv_heads, head_dim=config.head_size, d_ff=config.ff_dim, dropout=0.0)


def _from_folder(folder: HuggingFaceFolder, place: str, revision: str | None, weights: bool) -> BaseModel:
    if weights:
        folder.check_weights()
    return BaseModel(
        public(place), folder.kind, folder.config, folder.tokenizer, folder.chat_template, revision,
        folder.load_into, lambda: folder.sha256,
    )  # fmt: skip


# -- the hub -------------------------------------------------------------------------------------------------------


def _from_hub(place: str, weights: bool) -> BaseModel:
    name, _, query = place.removeprefix(HUB).partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    if not REPOSITORY.fullmatch(name) or set(options) - {"revision"}:
        raise UserError(f"model.base {public(place)}: expected hf://owner/name or hf://owner/name?revision=COMMIT")
    # Its config first: a model that cannot be used is not worth its gigabytes.
    folder = _download(place, name, options.get("revision"), list(SMALL))
    if (folder / CONFIG).is_file():
        opened = HuggingFaceFolder(folder, public(place))
        if weights:
            folder = _download(place, name, folder.name, [*SMALL, "*.safetensors"])
            opened = HuggingFaceFolder(folder, public(place))
        return _from_folder(opened, place, folder.name, weights)
    raise UserError(f"model.base {public(place)}: {CONFIG} is missing")


def _download(place: str, name: str, revision: str | None, patterns: list[str]) -> Path:
    """The hub's cache folder of a commit, whose name is the commit's, with the files of these names in it."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"model.base {public(place)}: hf:// needs the extra: pip install 'tinytf[finetune]'") from None
    try:
        # Folders inside a repository hold its weights in other formats.
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except Exception as error:
        if not (isinstance(error, (OSError, ValueError)) or raised_by(error, HUB_PACKAGES)):
            raise
        raise UserError(f"model.base {public(place)}: {shorten(' '.join(str(error).split()), 400)}") from None


# -- a checkpoint --------------------------------------------------------------------------------------------------


def _checkpoint_in(folder: Path) -> Path | None:
    """The checkpoint that a run's folder names as its best, else as its last: a link, or a small file with a name."""
    for name in ("best.ckpt", "last.ckpt"):
        path = folder / name
        if path.is_file() and path.stat().st_size < 256:
            target = read_text(path, what="model.base", limit=256)
            path = {file.name: file for file in folder.iterdir()}.get(target, path)
        if path.is_file():
            return path.resolve()
    return None


def _from_checkpoint(path: Path, place: str) -> BaseModel:
    with open_user_file(path, what="model.base") as file:
        begins = file.read(4)
    if path.suffix == ".safetensors":
        raise UserError(f"model.base {place}: give its folder, which has the config and the tokenizer too")
    if begins == b"GGUF":
        raise UserError(
            f"model.base {place}: a GGUF file is not read: make a folder of it once with transformers, "
            "AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=NAME).save_pretrained(OTHER_FOLDER)"
        )
    if PICKLES.fullmatch(path.name) and path.suffix != ".ckpt":
        raise UserError(f"model.base {place}: a {path.suffix} file may run code, and is not opened: give safetensors")
    content = read_checkpoint(path, mmap=True)
    refuse_misfit(content, path)
    entry = content["tinytf"]
    if "adapter" in entry:
        raise UserError(
            f"model.base {place}: it holds an adapter alone: merge it by tinytf export --formats huggingface, and give "
            "that folder"
        )
    template = entry.get("chat_template")
    config = complete(config_of(content))
    tokenizer = tokenizer_from_text(entry["tokenizer"], f"in checkpoint {path}")

    def load_into(model: Transformer) -> None:
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                tensor.copy_(content["state_dict"][MODEL_PREFIX + key])

    return BaseModel(
        public(place), "tinytf", config, tokenizer, template if isinstance(template, str) else None, None,
        load_into, lambda: sha256_of(path),
    )  # fmt: skip
