"""A folder that transformers, vLLM and the hub open with no code of ours: Qwen3's layout, Llama's without QK-norm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tinytf import __version__
from tinytf.data.tokenizer import encode, end_of_text_id
from tinytf.errors import UserError
from tinytf.export.quiet import quiet
from tinytf.export.runner import Feed, Runner
from tinytf.export.subject import Subject
from tinytf.model import TransformerConfig
from tinytf.run.checkpoint import MODEL_PREFIX

WEIGHTS = "model.safetensors"


def write(subject: Subject, path: Path, base: Path | None) -> None:
    """Write the folder that ``from_pretrained`` reads: weights, configs, tokenizer."""
    path.mkdir()
    config = subject.model.config
    write_weights(subject, path / WEIGHTS)
    _write_json(path / "config.json", architecture(config) | _special_ids(subject.tokenizer))
    _write_json(path / "generation_config.json", {"_from_model_config": True, **_special_ids(subject.tokenizer)})
    subject.tokenizer.save(str(path / "tokenizer.json"))
    _write_json(path / "tokenizer_config.json", _tokenizer_config(subject.tokenizer, config))
    (path / "README.md").write_text(model_card(subject), encoding="utf-8")


def write_weights(subject: Subject, path: Path) -> None:
    """The tied weights alone: the reference that `tinytf verify` can go back to."""
    from safetensors.torch import save_file

    weights = {MODEL_PREFIX + name: tensor.contiguous() for name, tensor in subject.model.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})


def architecture(config: TransformerConfig) -> dict[str, Any]:
    """``config.json``: the same shape in transformers' words."""
    name = "Qwen3" if config.qk_norm else "Llama"
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": name.lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.ff_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "use_cache": True,
        # Releases before 5 read rope_theta and torch_dtype, later ones rope_parameters and dtype.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "torch_dtype": "float32",
        "dtype": "float32",
    }


def _special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Beginning and end of text, where the tokenizer has a token for it; null, so that no default id stands in."""
    end = end_of_text_id(tokenizer)
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None}


def _tokenizer_config(tokenizer: Tokenizer, config: TransformerConfig) -> dict[str, Any]:
    written = {
        # Known to every release; what transformers 5 writes itself is not.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config.max_seq_len,
    }
    end = end_of_text_id(tokenizer)
    if end is not None:
        written["bos_token"] = written["eos_token"] = tokenizer.id_to_token(end)
    unknown = tokenizer.token_to_id("<unk>")
    if unknown is not None:
        written["unk_token"] = "<unk>"
    return written


def model_card(subject: Subject) -> str:
    """README.md: what the model is, where it came from, how to run it."""
    config = subject.model.config
    layout = "Qwen3" if config.qk_norm else "Llama"
    corpus = subject.entry.get("data", {}).get("corpus", "see the checkpoint")
    facts = {
        "Layout": f"{layout}: {config.n_layers} layers, {config.d_model} wide, {config.n_heads} heads "
        f"({config.kv_heads} key-value), tied embeddings",
        "Parameters": f"{config.parameter_count:,}",
        "Vocabulary": f"{config.vocab_size:,}",
        "Context": f"{config.max_seq_len} tokens",
        "Trained on": corpus if isinstance(corpus, str) else json.dumps(corpus),
        "Steps": subject.source.get("step", "unknown"),
        "Checkpoint (sha256)": f"`{subject.source.get('sha256', 'unknown')}`",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [tinytf, {layout.lower()}]
---
# {subject.name}

A small language model trained with tinytf {__version__}.

| | |
|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
inputs = tokenizer({json.dumps(_prompt(subject.tokenizer), ensure_ascii=False)}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

It continues text in the manner of what it was trained on. It was not tuned to follow instructions, nor tested for
anything beyond the losses that the run recorded.
"""


def _prompt(tokenizer: Tokenizer) -> str:
    """A word that it can encode: one by character knows only the characters of its text."""
    with suppress(UserError):
        encode(tokenizer, "Once")
        return "Once"
    visible = (token for token in sorted(tokenizer.get_vocab()) if token.isprintable() and not token.isspace())
    return next(visible, "")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def problems(subject: Subject, text: str, path: Path) -> list[str]:
    """Whether ``AutoTokenizer``, where it is installed, gives a text the same ids and gives it back."""
    if find_spec("transformers") is None:
        return []
    import transformers

    with silent():
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids != encode(subject.tokenizer, text):
        return ["AutoTokenizer gives other token ids"]
    back = tokenizer.decode(ids, skip_special_tokens=False)
    return [] if back == text else ["AutoTokenizer does not give back the text it tokenised"]


def open_runner(path: Path, threads: int) -> Runner:
    """The folder in transformers; an error where a weight is missing or left over."""
    import transformers

    with silent():
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, dtype=torch.float32, output_loading_info=True
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
