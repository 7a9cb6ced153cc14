"""Which parameters an optimizer treats alike."""

from __future__ import annotations

from typing import Any

from torch import nn

from tinytf.model import Transformer


def parameter_groups(model: Transformer, decay_all: bool = False) -> list[dict[str, Any]]:
    """Three groups: ``matrices`` (the blocks'), ``embedding`` (and unembedding) and ``norm`` (the vectors).

    Only ``matrices`` is decayed unless ``decay_all``: the others set a weight decay of 0 of their own. The names
    are what `MuonAdamW` goes by; torch's optimizers leave them alone.
    """
    embedding = [model.embed_tokens.weight] + ([] if model.config.tie_embeddings else [model.lm_head.weight])
    norm = [p for module in model.modules() if isinstance(module, nn.RMSNorm) for p in module.parameters()]
    others = {id(p) for p in embedding + norm}
    matrices = [p for p in model.parameters() if id(p) not in others]
    spared: dict[str, Any] = {} if decay_all else {"weight_decay": 0.0}
    return [
        {"name": "matrices", "params": matrices},
        {"name": "embedding", "params": embedding, **spared},
        {"name": "norm", "params": norm, **spared},
    ]
