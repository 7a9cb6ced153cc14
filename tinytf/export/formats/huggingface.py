"""A folder that transformers, vLLM and the hub open with no code of ours: Qwen3's layout, Llama's without QK-norm."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tinytf.data.tokenizer import begin_of_text_id, encode, end_of_text_id, special_tokens
from tinytf.export.formats import Writer, end_of_turn_id
from tinytf.export.formats.card import hub_card, layout
from tinytf.export.parity.runner import Feed, Runner, quiet
from tinytf.model import TransformerConfig
from tinytf.utils.files import read_bytes, read_text
from tinytf.utils.text import read_json
from tinytf.weights.checkpoint import LoadedModel
from tinytf.weights.huggingface import CHAT_TEMPLATE, WEIGHTS, theirs

SETTINGS = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", CHAT_TEMPLATE}
SETTINGS |= {"special_tokens_map.json"}  # Releases before 5 write it.
FILES = {WEIGHTS, "README.md", *SETTINGS}
FILES |= {"genai_config.json"}  # Of onnxruntime-genai, which runs the ONNX graph of the folder.

PADDING = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")
"""What stands for nothing in a batch, in the tokenizers of pretrained models; their tokenizer.json does not say which
does."""
SPARE = "<|pad|>"
"""What a row of the embeddings beyond the tokenizer's entries is called, where nothing else can be padded with."""

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
MAX_JSON = 2**20
"""Bytes of a config; ours have 1,000."""

TOKENIZER_TEXTS = {"backend", "tokenizer_class", "padding_side", "bos_token", "eos_token", "unk_token", "pad_token"}
TOKENIZER_TEXTS |= {"model_input_names", "added_tokens_decoder", "extra_special_tokens"}
"""Of all keys of tokenizer_config.json, those whose values may be more than numbers."""

READ_BY_TRANSFORMERS = {".json", ".safetensors", ".bin", ".py", ".model", ".jinja"}
MORE_TEMPLATES = "additional_chat_templates"
"""A folder that transformers reads, too."""


class HuggingFace(Writer):
    """The folder that ``from_pretrained`` reads: weights, configs, tokenizer, model card."""

    def unsupported_reason(self, loaded: LoadedModel) -> str | None:
        config = loaded.model.config
        if not config.qk_norm and config.d_model % config.n_heads:
            # With a head_dim of its own the model has no need of it, and neither has Qwen3's config.
            return f"transformers' Llama has no d_model {config.d_model} that n_heads {config.n_heads} does not divide"
        return None

    def write(self, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        path.mkdir()
        write_weights(loaded, path / WEIGHTS)
        write_settings(loaded, path)
        (path / "README.md").write_text(hub_card(loaded), encoding="utf-8")

    def open_runner(self, path: Path, threads: int) -> Runner:
        import transformers

        with silent():
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        left = {what: sorted(names) for what, names in info.items() if names}
        if left:
            raise RuntimeError(f"transformers did not take the weights as they are: {left}")
        model.eval()

        def start(batch_size: int) -> Feed:
            past = transformers.DynamicCache(config=model.config)

            def feed(tokens: Tensor) -> Tensor:
                with torch.inference_mode():
                    logits: Tensor = model(input_ids=tokens, past_key_values=past, use_cache=True).logits
                return logits

            return feed

        return Runner(f"transformers {transformers.__version__}", start)

    def validate_artifact(self, loaded: LoadedModel, text: str, path: Path) -> list[str]:
        if find_spec("transformers") is None:
            return []
        import transformers

        require_own_folder(path, loaded)
        if changed := changed_weights(loaded, path / WEIGHTS):
            return [f"weight {changed[0]} is not the model's"]
        with silent():
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            # As people call it. A literal <|endoftext|> in a text is text here, and the special token there.
            literal = any(word in text for word in special_tokens(loaded.tokenizer))
            how = {"split_special_tokens": True} if literal else {}
            whole = tokenizer(text, **how)["input_ids"]
            ids = tokenizer(text, add_special_tokens=False, **how)["input_ids"]
        # Around a text there may be what a base model's tokenizer puts there.
        if ids != encode(loaded.tokenizer, text) or whole != loaded.tokenizer.encode(text).ids:
            return ["AutoTokenizer gives other token ids"]
        back = tokenizer.decode(ids, skip_special_tokens=False)
        return [] if back == text else ["AutoTokenizer does not give back the text"]


HUGGINGFACE = HuggingFace()


def write_settings(loaded: LoadedModel, path: Path) -> None:
    """All of the folder but weights and model card: `SETTINGS`."""
    import transformers

    with silent():
        config = transformers_config(loaded.model.config, loaded.tokenizer)
        config.save_pretrained(path)
        generation = transformers.GenerationConfig.from_model_config(config)
        tokenizer = wrapped_tokenizer(loaded)
        generation.eos_token_id = end_ids(loaded) or None
        # Not in config.json: an embedding that it names as padding gets no gradient when the model is trained on.
        generation.pad_token_id = tokenizer.pad_token_id
        generation.save_pretrained(path)
        tokenizer.save_pretrained(path)
    _change_json(path / "config.json", **_rope(loaded.model.config))
    if loaded.chat_template is not None:
        # Not by the tokenizer: older releases put it into tokenizer_config.json, where no code is accepted.
        (path / CHAT_TEMPLATE).write_bytes(loaded.chat_template.encode())
    # Release 5 writes "TokenizersBackend", which releases before it do not know.
    _change_json(path / "tokenizer_config.json", tokenizer_class=TOKENIZER_CLASS)
    # Release 5 adds a truncation or padding of its own to tokenizer.json: ours is the bundle's, unchanged.
    loaded.tokenizer.save(str(path / "tokenizer.json"))


def write_weights(loaded: LoadedModel, path: Path) -> None:
    """The weights alone, a tied embedding once: the reference that `tinytf verify` compares with."""
    from safetensors.torch import save_file

    weights = {theirs(name): tensor.contiguous() for name, tensor in loaded.model.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})


def changed_weights(loaded: LoadedModel, path: Path) -> list[str]:
    """Names of weights that are not in the file bit by bit."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        there, weights = set(file.keys()), loaded.model.state_dict()
        return [
            name
            for name, weight in weights.items()
            if theirs(name) not in there or not torch.equal(file.get_tensor(theirs(name)), weight)
        ]


def transformers_config(config: TransformerConfig, tokenizer: Tokenizer) -> Any:
    """The model's config in transformers' words."""
    import transformers

    return getattr(transformers, f"{layout(config)}Config")(
        **_sizes(config),
        **_rope(config),
        architectures=[f"{layout(config)}ForCausalLM"],
        # Left out, Llama's default ids 1 and 2 would stand for the beginning and the end of a text.
        bos_token_id=begin_of_text_id(tokenizer),
        eos_token_id=end_of_text_id(tokenizer),
        pad_token_id=None,
        dtype="float32",
    )


def _sizes(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.ff_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _rope(config: TransformerConfig) -> dict[str, Any]:
    """The rotary positions in the words of release 5 (``rope_parameters``) and of those before it (the others)."""
    scaling = config.rope_scaling
    stated: dict[str, Any] = {}
    if scaling is not None:
        stated = {"rope_type": scaling.rope_type, "factor": scaling.factor}
    if scaling is not None and scaling.rope_type == "llama3":
        stated |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    return {
        "rope_parameters": {"rope_type": "default", **stated, "rope_theta": config.rope_theta},
        # They look for it outside of rope_parameters, and take 10,000 if it is not there.
        "rope_theta": config.rope_theta,
        **({"rope_scaling": stated} if stated else {}),
    }


def _texts(config: TransformerConfig) -> dict[str, Any]:
    """All that a config.json may state besides numbers."""
    name = layout(config)
    return {
        "model_type": name.lower(),
        "architectures": [f"{name}ForCausalLM"],
        "hidden_act": "silu",
        "layer_types": ["full_attention"] * config.n_layers,
        "dtype": "float32",
        "torch_dtype": "float32",
        **_rope(config),
    }


def wrapped_tokenizer(loaded: LoadedModel) -> Any:
    """The tokenizer as transformers wraps it."""
    import transformers

    tokenizer = loaded.tokenizer
    begin, end = begin_of_text_id(tokenizer), end_of_text_id(tokenizer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_str()),
        bos_token=None if begin is None else tokenizer.id_to_token(begin),
        # Of a chat model too: the end of a turn is generate's to know, by generation_config.json.
        eos_token=None if end is None else tokenizer.id_to_token(end),
        unk_token="<unk>" if tokenizer.token_to_id("<unk>") is not None else None,
        pad_token=pad_token(loaded),
        padding_side="left",  # So that what is written goes on from the prompt.
        model_max_length=loaded.model.config.max_seq_len,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def pad_token(loaded: LoadedModel) -> str | None:
    """What rows of a batch are filled up with: the tokenizer's own token for it, else the one that ends a text.

    Else it is one for a spare row of the embeddings, and None if there is none: no letter may be taken for it, because
    transformers leaves special tokens out of the texts that it shows.
    """
    special, end = special_tokens(loaded.tokenizer), end_of_text_id(loaded.tokenizer)
    known = next((word for word in PADDING if word in special), None)
    if known is None and end is not None:
        known = loaded.tokenizer.id_to_token(end)
    if known is not None:
        return known
    return SPARE if loaded.model.config.vocab_size > loaded.tokenizer.get_vocab_size() else None


def end_ids(loaded: LoadedModel) -> list[int]:
    """Where generation stops: at the end of a text, and of an assistant's turn if the model has a chat template."""
    ends = (end_of_turn_id(loaded), end_of_text_id(loaded.tokenizer))
    return list(dict.fromkeys(end for end in ends if end is not None))


def _change_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def require_own_folder(path: Path, loaded: LoadedModel) -> None:
    """Raise RuntimeError at what could make transformers load anything but this model from this folder.

    An ``adapter_config.json`` names weights anywhere on the disk, ``attn_implementation`` a kernel that is fetched from
    the hub and run, ``auto_map`` and ``quantization_config`` other code; a ``config.json`` may state a million layers.
    A chat template is code in Jinja: it must be the model's, byte by byte.
    """
    config = loaded.model.config
    strangers = sorted(file.name for file in path.iterdir() if file.name not in FILES)
    strangers = [name for name in strangers if Path(name).suffix in READ_BY_TRANSFORMERS or name == MORE_TEMPLATES]
    if strangers:
        raise RuntimeError(f"{path.name}/{strangers[0]} is not a file that tinytf exports: it is not opened with it")
    if os.path.lexists(path / CHAT_TEMPLATE):
        template = read_bytes(path / CHAT_TEMPLATE, what="file", limit=MAX_JSON)
        if loaded.chat_template is None or template != loaded.chat_template.encode():
            raise RuntimeError(f"{path.name}/{CHAT_TEMPLATE} is not the model's: it is not opened with it")
    stated, tokenizer = (_read_json(path / name) for name in ("config.json", "tokenizer_config.json"))
    _read_json(path / "generation_config.json")
    wanted = _sizes(config) | _rope(config) | {"model_type": layout(config).lower()}
    wrong = [name for name, value in wanted.items() if stated.get(name) != value]
    texts = _texts(config) | {"transformers_version": stated.get("transformers_version")}
    wrong += [name for name in _names_anything(stated) if stated[name] != texts.get(name)]
    if wrong:
        raise RuntimeError(f"{path.name}/config.json: its {wrong[0]} is not the model's: it is not opened")
    wrong = [name for name in _names_anything(tokenizer) if name not in TOKENIZER_TEXTS]
    if wrong or tokenizer.get("tokenizer_class") != TOKENIZER_CLASS:
        name = wrong[0] if wrong else "tokenizer_class"
        raise RuntimeError(f"{path.name}/tokenizer_config.json: its {name} is not tinytf's: it is not opened")


def _names_anything(content: dict[str, Any]) -> list[str]:
    # Numbers are left alone: later releases may write more of them, and they name no file and no code.
    return [name for name, value in content.items() if isinstance(value, (str, list, dict))]


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(read_text(path, what="file", limit=MAX_JSON), f"file {path}")
    if not isinstance(content, dict):
        raise RuntimeError(f"{path.parent.name}/{path.name} is no object of JSON")
    return content


@contextmanager
def silent() -> Iterator[None]:
    """transformers sets its logger up as it is imported, and draws a bar as it loads; both are put back."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
