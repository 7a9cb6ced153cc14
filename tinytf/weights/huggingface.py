"""A pretrained model in a Hugging Face folder: its config in our words, its tokenizer, its tensors.

Everything in the folder is data: JSON is read with bounds, weights only as safetensors, and a name inside a file is
compared with the names in the folder, never joined to a path. What our layout cannot express is refused by the name of
the property; no property that changes the function is skipped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tinytf.data.examples.chat import read_chat_template
from tinytf.data.tokenizer import LARGEST_FILE, tokenizer_from_text
from tinytf.errors import UserError
from tinytf.model import Transformer, TransformerConfig
from tinytf.model.config import ConfigurationError
from tinytf.utils.files import open_user_file, read_text, shorten
from tinytf.utils.machine import usable_memory
from tinytf.utils.text import read_json
from tinytf.weights.checkpoint import MODEL_PREFIX

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

SMALL = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE, "tokenizer.model", INDEX)
"""What a model is known by before its weights are fetched."""

MAX_JSON = 1 << 26
"""Bytes of a JSON file but the tokenizer's; the index of a model with 100,000 tensors has 10 MB."""

SHARD = re.compile(r"[^/\\:]+\.safetensors")
PICKLES = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|h5|msgpack)")
UNUSED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""A buffer that releases of transformers before 4.32 saved; it follows from the config."""

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Architecture:
    """What ``model_type`` implies where config.json leaves a key out: the defaults of transformers' config class."""

    class_name: str
    qk_norm: bool = False
    head_dim: int | None = None
    kv_heads: int | None = None
    rope_theta: float = 10_000.0
    tied: bool = False
    sliding_window: int | None = None


ARCHITECTURES = {
    "qwen3": Architecture("Qwen3ForCausalLM", qk_norm=True, head_dim=128, kv_heads=32),
    "llama": Architecture("LlamaForCausalLM"),
    "mistral": Architecture("MistralForCausalLM", kv_heads=8, sliding_window=4096),
    "smollm3": Architecture("SmolLM3ForCausalLM", kv_heads=4, rope_theta=2e6, tied=True),
}

OTHERS = {
    "gpt2": "it has learned positions, LayerNorm and biases",
    "gpt_neox": "it has LayerNorm, biases and parallel blocks",
    "opt": "it has learned positions and biases",
    "qwen2": "its attention has biases (attention_bias)",
    "gemma": "its activation is GELU, and its embedding is scaled",
    "phi3": "its projections are fused",
}
"""Why the best known others are not read."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "attention_bias": (False,),
    "qkv_bias": (False,),
    "mlp_bias": (False,),
    "use_bias": (False,),
    "pretraining_tp": (1,),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "quantization_config": (),
    "compression_config": (),
    "per_layer_config": ({},),
    "auto_map": ({},),
}
"""Keys that change the function, or who computes it, with the values that do not; null never does."""


@dataclass(frozen=True)
class Slot:
    """A tensor of the file: where it is, and what it is stored as."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class HuggingFaceFolder:
    """A folder with config.json, tokenizer.json and safetensors.

    Args:
        path: the folder.
        name: as the user gave it, for messages.

    Raises:
        UserError: naming the file or property that cannot be used.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.files = {file.name: file for file in path.iterdir() if not file.is_dir()}
        stated = self._json(CONFIG)
        self.kind = str(stated.get("model_type"))
        try:
            self.config = transformer_config(stated)
        except UserError as error:
            raise UserError(*(f"model.base {name}: {CONFIG}: {problem}" for problem in error.problems)) from None
        self.tokenizer = self._tokenizer()

    # -- small files -----------------------------------------------------------------------------------------------

    def _json(self, name: str) -> dict[str, Any]:
        what = f"model.base {self.name}: {name}"
        if name not in self.files:
            raise UserError(f"{what} is missing")
        content = read_json(read_text(self.files[name], what="model.base", limit=MAX_JSON), what)
        if not isinstance(content, dict):
            raise UserError(f"{what}: expected an object of JSON")
        return content

    @cached_property
    def _tokenizer_config(self) -> dict[str, Any]:
        return self._json(TOKENIZER_CONFIG) if TOKENIZER_CONFIG in self.files else {}

    def _tokenizer(self) -> Tokenizer:
        if TOKENIZER not in self.files:
            what = f"model.base {self.name}: {TOKENIZER} is missing"
            if others := [each for each in ("tokenizer.model", "vocab.json") if each in self.files]:
                raise UserError(
                    f"{what}, and {others[0]} alone is not read: make it once with transformers, "
                    "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
                )
            raise UserError(what)
        text = read_text(self.files[TOKENIZER], what="model.base", limit=LARGEST_FILE)
        found = tokenizer_from_text(text, f"of model.base {self.name}")
        entries, rows = found.get_vocab_size(), self.config.vocab_size
        if entries > rows:
            raise UserError(
                f"model.base {self.name}: {TOKENIZER} has {entries:,} entries, but the embedding has rows for "
                f"{rows:,} (vocab_size): it is not this model's tokenizer"
            )
        # transformers adds what tokenizer_config.json states to the tokenizer, so both must say the same.
        stated = self._tokenizer_config.get("added_tokens_decoder")
        for number, token in stated.items() if isinstance(stated, dict) else ():
            content = token.get("content") if isinstance(token, dict) else token
            known = number.isdecimal() and len(number) < 20  # Python reads no number of 5,000 digits.
            if not known or found.id_to_token(min(int(number), rows)) != content:
                raise UserError(
                    f"model.base {self.name}: {TOKENIZER_CONFIG} has the token {shorten(repr(content), 60)} as id "
                    f"{shorten(number, 20)}, but {TOKENIZER} does not"
                )
        return found

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of conversations, as text."""
        return read_chat_template(self.path)

    # -- weights ---------------------------------------------------------------------------------------------------

    def check_weights(self) -> None:
        """Refuse weights that are missing, of another shape or type, or more than the config describes."""
        found, config = dict(self._slots), self.config
        layers = {match[1] for key in found if (match := re.match(r"model\.layers\.(\d+)\.", key))}
        # Before anything is built: config.json may state a million layers, or more positions than fit into memory.
        if config.n_layers != len(layers):
            raise UserError(
                f"model.base {self.name}: {CONFIG} states {config.n_layers} layers (num_hidden_layers), but there are "
                f"weights of {len(layers)}"
            )
        tables = 16 * config.max_seq_len * config.head_size
        if tables > (usable_memory() or tables):
            raise UserError(
                f"model.base {self.name}: {CONFIG} states {config.max_seq_len} positions (max_position_embeddings), "
                "which are more than fit into memory"
            )
        try:
            with torch.device("meta"):
                wanted = {key: list(value.shape) for key, value in Transformer(config).state_dict().items()}
        except (RuntimeError, OverflowError, TypeError) as error:  # Sizes past 2**63.
            raise UserError(f"model.base {self.name}: {CONFIG}: {shorten(' '.join(str(error).split()))}") from None
        wanted = {theirs(key): value for key, value in wanted.items()}
        for key in sorted({*wanted, *found}):
            slot = found.get(key)
            if slot is None:
                raise UserError(f"model.base {self.name}: the tensor {key} {wanted[key]} is missing")
            if key not in wanted:
                if UNUSED.fullmatch(key) or self._repeats_embedding(key, found):
                    continue
                why = "tie_word_embeddings is true, and it is not the embedding; " if key == LM_HEAD else ""
                raise UserError(
                    f"model.base {self.name}: {why}the tensor {key} {list(slot.shape)} is more than {CONFIG} describes"
                )
            if list(slot.shape) != wanted[key]:
                raise UserError(
                    f"model.base {self.name}: the tensor {key} is {list(slot.shape)}, but {CONFIG} describes "
                    f"{wanted[key]}"
                )
            if slot.dtype not in DTYPES:
                raise UserError(
                    f"model.base {self.name}: the tensor {key} is {slot.dtype}, but expected {', '.join(DTYPES)}: "
                    "quantized weights are not read"
                )

    def _repeats_embedding(self, key: str, found: Mapping[str, Slot]) -> bool:
        """Whether it is the unembedding of a tied model, saved a second time."""
        embedding = theirs("embed_tokens.weight")
        if key != LM_HEAD or embedding not in found or found[key].dtype != found[embedding].dtype:
            return False
        return torch.equal(self._read(found[key].file, key), self._read(found[embedding].file, embedding))

    def load_into(self, model: Transformer) -> None:
        """Copy each tensor from the file's memory map into the model's, in the model's type; nothing is held twice."""
        slots = self._slots
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                # Each tensor by a map of its own, which ends with it: pages of a map that stays count as memory used.
                tensor.copy_(self._read(slots[theirs(key)].file, theirs(key)))

    @cached_property
    def sha256(self) -> str:
        """Of the weights, in hex: of the one file, or of the shards one after another in the order of their names."""
        digest = hashlib.sha256()
        for path in sorted({slot.file for slot in self._slots.values()}):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    @cached_property
    def size(self) -> int:
        """Bytes of the weights' files."""
        return sum(path.stat().st_size for path in {slot.file for slot in self._slots.values()})

    @cached_property
    def dtypes(self) -> list[str]:
        """What the weights are stored as, in torch's words."""
        return sorted({str(DTYPES[slot.dtype]).removeprefix("torch.") for slot in self._slots.values()})

    def _read(self, path: Path, key: str) -> Tensor:
        with self._open(path) as file:
            tensor: Tensor = file.get_tensor(key)
            return tensor

    def _open(self, path: Path) -> Any:
        safetensors = safetensors_library()
        open_user_file(path, what=f"model.base {self.name}:").close()  # A map of a pipe or a device is none.
        try:
            return safetensors.safe_open(path, framework="pt")
        except (safetensors.SafetensorError, OSError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"model.base {self.name}: {path.name} is no whole safetensors file ({why})") from None

    @cached_property
    def _slots(self) -> dict[str, Slot]:
        """Every tensor by its name."""
        slots = {}
        for path, named in self._shards():
            with self._open(path) as file:
                inside = set(file.keys())
                for key in sorted(inside if named is None else named):
                    if key not in inside:
                        raise UserError(f"model.base {self.name}: {path.name} has no tensor {key}, but {INDEX} says so")
                    piece = file.get_slice(key)
                    slots[key] = Slot(path, str(piece.get_dtype()), tuple(piece.get_shape()))
        return slots

    def _shards(self) -> Iterator[tuple[Path, list[str] | None]]:
        """Each file, and the tensors that are taken from it; None for all."""
        if WEIGHTS in self.files:  # As transformers, which looks for it first.
            yield self.files[WEIGHTS], None
            return
        if INDEX not in self.files:
            raise UserError(f"model.base {self.name}: {self._no_weights()}")
        table = self._json(INDEX).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise UserError(f"model.base {self.name}: {INDEX} has no weight_map")
        by_file: dict[str, list[str]] = {}
        for key, file in table.items():
            if not isinstance(file, str) or not SHARD.fullmatch(file):
                raise UserError(
                    f"model.base {self.name}: {INDEX} names {shorten(repr(file), 80)}, which is no name of a "
                    "safetensors file in the folder"
                )
            by_file.setdefault(file, []).append(key)
        for file, keys in sorted(by_file.items()):
            if file not in self.files:
                raise UserError(f"model.base {self.name}: the shard {shorten(file, 80)} is missing")
            yield self.files[file], keys

    def _no_weights(self) -> str:
        shards = sorted(file for file in self.files if SHARD.fullmatch(file))
        pickles = sorted(file for file in self.files if PICKLES.fullmatch(file))
        if len(shards) > 0:
            return f"{INDEX} is missing, which says what {shards[0]} holds"
        if pickles:
            return (
                f"{pickles[0]} is not opened, because it may run code: convert it where you trust it, with "
                "transformers, AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER_FOLDER)"
            )
        return f"{WEIGHTS} is missing"


LM_HEAD = "lm_head.weight"


def theirs(key: str) -> str:
    """transformers' name of a parameter of `Transformer`."""
    return key if key == LM_HEAD else MODEL_PREFIX + key


def safetensors_library() -> Any:
    """The package ``safetensors``; UserError if the extra is not installed."""
    try:
        import safetensors
    except ImportError:
        raise UserError("model.base: safetensors is not installed: pip install 'tinytf[finetune]'") from None
    return safetensors


# -- config.json ---------------------------------------------------------------------------------------------------


def transformer_config(stated: Mapping[str, Any]) -> TransformerConfig:
    """The config that a config.json describes, in transformers' words of release 4 or 5.

    Raises:
        UserError: naming each property that our layout cannot express, or that is missing or of another type.
    """
    kind = stated.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        why = OTHERS.get(str(kind), f"expected {', '.join(ARCHITECTURES)}")
        raise UserError(f"model_type is {shorten(repr(kind), 60)}, which is not supported: {why}")
    architecture = ARCHITECTURES[kind]
    if problems := list(_properties(stated, architecture)):
        raise UserError(*problems)
    d_model, n_heads = stated["hidden_size"], stated["num_attention_heads"]
    values = {
        "vocab_size": stated["vocab_size"],
        "d_model": d_model,
        "n_heads": n_heads,
        "n_layers": stated["num_hidden_layers"],
        "n_kv_heads": stated.get("num_key_value_heads", architecture.kv_heads) or n_heads,
        "head_dim": stated.get("head_dim", architecture.head_dim) or d_model // max(n_heads, 1),
        "d_ff": stated["intermediate_size"],
        "max_seq_len": stated["max_position_embeddings"],
        "qk_norm": architecture.qk_norm,
        "norm_eps": stated.get("rms_norm_eps", 1e-6),
        "tie_embeddings": stated.get("tie_word_embeddings", architecture.tied),
        **_rotary(stated, architecture),
    }
    try:
        return TransformerConfig.from_mapping(values)
    except ConfigurationError as error:
        raise UserError(*error.problems) from None


NEEDED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip


def _properties(stated: Mapping[str, Any], architecture: Architecture) -> Iterator[str]:
    """What our layout cannot express, one line each."""
    for key in (*NEEDED, "num_key_value_heads", "head_dim"):
        value = stated.get(key)
        if key in NEEDED and key not in stated:
            yield f"{key} is missing"
        elif (value is not None or key in NEEDED) and type(value) is not int:
            yield f"{key} is {shorten(repr(value), 60)}, but must be a whole number"
    classes = stated.get("architectures")
    if classes and (not isinstance(classes, list) or architecture.class_name not in classes):
        yield f"architectures is {shorten(repr(classes), 80)}, but expected a list with {architecture.class_name}"
    for key, neutral in NEUTRAL.items():
        value = stated.get(key)
        if value is not None and value not in neutral:
            expected = " or ".join(map(repr, neutral)) or "none"
            yield f"{key} is {shorten(repr(value), 80)}, which is not supported: expected {expected}"
    yield from _windows(stated, architecture)


def _windows(stated: Mapping[str, Any], architecture: Architecture) -> Iterator[str]:
    """Layers that see a part of the context, or no positions."""
    window = stated.get("sliding_window", architecture.sliding_window)
    used = stated.get("use_sliding_window", False) if architecture.sliding_window is None else window is not None
    longest = stated.get("max_position_embeddings")
    within = isinstance(window, int) and isinstance(longest, int) and window >= longest
    # A window as long as the context leaves nothing out.
    if used and window is not None and not within:
        default = "" if "sliding_window" in stated else " (what this architecture has if it is not stated)"
        yield f"sliding_window is {shorten(window, 40)}{default}, which is not supported: expected null"
    kinds = stated.get("layer_types") or []
    if (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)) and not within:
        yield f"layer_types is {shorten(kinds, 80)}, which is not supported: expected full_attention alone"
    if architecture.class_name == "SmolLM3ForCausalLM":
        rotated, interval = stated.get("no_rope_layers"), stated.get("no_rope_layer_interval", 4)
        layers, unrotated = stated.get("num_hidden_layers"), "layers without rotary positions are not supported"
        past_the_last = type(layers) is not int or (isinstance(interval, int) and interval > layers)
        if rotated is None and not past_the_last:
            yield f"no_rope_layer_interval is {shorten(interval, 60)}: {unrotated}"
        elif rotated is not None and (not isinstance(rotated, list) or any(each != 1 for each in rotated)):
            yield f"no_rope_layers is {shorten(rotated, 60)}: {unrotated}"


def _rotary(stated: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling``, from release 4's keys of these names or release 5's rope_parameters."""
    place = "rope_scaling" if stated.get("rope_scaling") else "rope_parameters"
    given = stated.get(place) or {}
    if not isinstance(given, dict):
        raise UserError(f"{place} is {shorten(repr(given), 60)}, but expected an object of JSON")
    if any(isinstance(value, dict) for value in given.values()):
        raise UserError(f"{place} differs from layer to layer, which is not supported: expected one for all")
    theta = given.get("rope_theta", stated.get("rope_theta", architecture.rope_theta))
    if stated.get("rope_theta", theta) != theta:
        raise UserError(f"rope_theta is {shorten(stated['rope_theta'], 40)}, but {shorten(theta, 40)} in {place}")
    if given.get("partial_rotary_factor", 1) not in (1, None):
        stated_factor = shorten(repr(given["partial_rotary_factor"]), 60)
        raise UserError(f"{place}.partial_rotary_factor is {stated_factor}, which is not supported")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind in ("default", None):
        return {"rope_theta": theta, "rope_scaling": None}
    if kind not in ("linear", "llama3"):
        raise UserError(
            f"{place}.rope_type is {shorten(repr(kind), 40)}, which is not supported: expected default, linear, llama3"
        )
    scaling = {"rope_type": kind, "factor": given.get("factor")}
    if kind == "llama3":
        original = given.get("original_max_position_embeddings", stated["max_position_embeddings"])
        scaling |= {key: given.get(key) for key in ("low_freq_factor", "high_freq_factor")}
        scaling |= {"original_max_seq_len": original}
    if missing := [key for key, value in scaling.items() if value is None]:
        raise UserError(f"{place}.{missing[0]} is missing")
    return {"rope_theta": theta, "rope_scaling": scaling}
