"""Which parameters are trained, which of those an optimizer treats alike, and what a step of them computes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from tinytf.errors import UserError
from tinytf.model import Transformer


def freeze(model: Transformer, patterns: Iterable[str]) -> None:
    """Train no parameter whose name one of the patterns matches, such as ``embed_tokens.*`` or ``layers.0.*``.

    Raises:
        UserError: if a pattern matches nothing, or nothing is left to train.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if not matched:
            choices = [*named, *(f"{name}.*" for name, _ in model.named_modules() if name)]
            near = difflib.get_close_matches(pattern, choices, n=3, cutoff=0)
            raise UserError(f"model.freeze: no parameter is called {pattern!r}; the nearest are {', '.join(near)}")
        for name in matched:
            named[name].requires_grad_(False)
    if not any(p.requires_grad for p in named.values()):
        raise UserError("model.freeze: with every parameter frozen there is nothing to train; leave some out")


def parameter_groups(model: Transformer, decay_all: bool = False) -> list[dict[str, Any]]:
    """Three groups: ``matrices`` (the blocks'), ``embedding`` (and unembedding) and ``norm`` (the vectors).

    Only ``matrices`` is decayed unless ``decay_all``: the others set a weight decay of 0 of their own. The names
    are what `MuonAdamW` goes by; torch's optimizers leave them alone. Frozen parameters are in none: a group may be
    empty, but is there, so that a scheduler's list of one rate per group is that of every run.
    """
    embedding = [model.embed_tokens.weight] + ([] if model.config.tie_embeddings else [model.lm_head.weight])
    norm = [p for module in model.modules() if isinstance(module, nn.RMSNorm) for p in module.parameters()]
    others = {id(p) for p in embedding + norm}
    matrices = [p for p in model.parameters() if id(p) not in others]
    spared: dict[str, Any] = {} if decay_all else {"weight_decay": 0.0}
    return [
        {"name": "matrices", "params": trained(matrices)},
        {"name": "embedding", "params": trained(embedding), **spared},
        {"name": "norm", "params": trained(norm), **spared},
    ]


def trained(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those that are not frozen."""
    return [p for p in parameters if p.requires_grad]


def blocks_without_gradient(model: Transformer) -> int:
    """Blocks at the bottom that no gradient passes: nothing in them or below them is trained."""
    if model.embed_tokens.weight.requires_grad:
        return 0
    reached = (number for number, block in enumerate(model.layers) if trained(block.parameters()))
    return next(reached, len(model.layers))


def flops_per_token(model: Transformer, seq_len: int) -> float:
    """`TransformerConfig.flops_per_token`, less what frozen weights spare.

    A weight has three products: forward, its input's gradient, and its own, which a frozen one has not. Blocks below
    all that is trained have the first alone, and so has their attention.
    """
    attention, below, flops = 4 * model.config.attention_dim * seq_len, blocks_without_gradient(model), 0
    for number, block in enumerate(model.layers):
        reached = number >= below
        flops += sum(2 * p.numel() * (1 + reached + p.requires_grad) for p in block.parameters())
        flops += attention * (1 + 2 * reached)
    return float(flops + sum(2 * p.numel() * (2 + p.requires_grad) for p in (model.norm.weight, model.unembedding)))
