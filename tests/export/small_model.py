"""A small model whose weights hide no bug, its tokenizers and its checkpoint, made in a moment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tinytf.data.tokenizer import byte_pair_tokenizer, character_tokenizer
from tinytf.export.parity.cases import Evaluation
from tinytf.export.parity.compare import ReferenceLogits
from tinytf.model import Transformer, TransformerConfig
from tinytf.weights.checkpoint import LoadedModel

TEXT = (
    "Now is the winter of our discontent\nMade glorious summer by this sun of York;\nAnd all the clouds that lour'd "
    "upon our house\nIn the deep bosom of the ocean buried. — Naïve, isn't it?\n"
) * 4

LOOSE = ("int8.kl=1", "int8.top1=0.5", "int8.loss=1", "int4.kl=1", "int4.top1=0.3", "int4.loss=1", "int4.relative=9")
LOOSE += ("fp16.kl=1e-4",)
"""Rounding hurts random weights far more than trained ones."""


LLAMA_3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PROPERTIES: dict[str, dict[str, Any]] = {
    "untied": {"tie_embeddings": False},
    "head_dim": {"head_dim": 24},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "llama3": {"rope_scaling": {**LLAMA_3, "original_max_seq_len": 16}, "qk_norm": False},
}
"""What a pretrained model may have, each alone. The context of 16 puts pairs on both sides of llama3's two bounds."""

EVERYTHING: dict[str, Any] = {key: value for changes in PROPERTIES.values() for key, value in changes.items()}


def spread(model: Transformer) -> Transformer:
    """Weights that hide no bug: norms off 1, residual writes not zero, logits with a standard deviation near 2."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_(1 + 0.3 * noise)
            else:
                weight.copy_(noise * (1.7 if "embed" in name or "head" in name else 1.0) / weight.shape[1] ** 0.5)
    return model.eval()


@cache
def reference_of(model: Transformer, evaluation: Evaluation) -> ReferenceLogits:
    """The model's own logits, computed once for all tests that compare with it."""
    return ReferenceLogits(model, evaluation)


def small_model(vocab_size: int, **changes: Any) -> Transformer:
    shape: dict[str, Any] = {"d_model": 64, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "max_seq_len": 48}
    return spread(Transformer(TransformerConfig(vocab_size, **(shape | changes))))


def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "char":
        return character_tokenizer(TEXT, end_of_text=True)
    return byte_pair_tokenizer(iter([TEXT]), 300)


TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""


def chat_model(**changes: Any) -> LoadedModel:
    """As one that was tuned on conversations: a template, and special tokens that it writes."""
    tokenizer = tokenizer_of("bpe")
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<pad>"])
    entry = {"config": {"name": "trial"}, "chat_template": TEMPLATE}
    # Embeddings of pretrained models have more rows than their tokenizers have entries.
    return LoadedModel(small_model(tokenizer.get_vocab_size() + 5, **changes), tokenizer, entry, 7)


def save_checkpoint(path: Path, loaded: LoadedModel, **config: Any) -> Path:
    """A file as Lightning writes it, with nothing but what export reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {
        "format": 1,
        "model": asdict(loaded.model.config),
        "tokenizer": loaded.tokenizer.to_str(),
        "config": {"name": loaded.name, **config},
        "data": loaded.entry.get("data", {"corpus": "a test"}),
        "provenance": {},
        **{key: loaded.entry[key] for key in ("base", "chat_template") if key in loaded.entry},
    }
    weights = {f"model.{name}": value for name, value in loaded.model.state_dict().items()}
    torch.save({"state_dict": weights, "tinytf": entry, "global_step": 7}, path)
    return path


@dataclass(frozen=True)
class Exported:
    """A run folder after `tinytf export`."""

    checkpoint: Path
    folder: Path
    content: dict[str, Any]
    code: int
    said: str
    text: Path

    def entry(self, name: str) -> dict[str, Any]:
        return next(entry for entry in self.content["artifacts"] if entry["name"] == name)
