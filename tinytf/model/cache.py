"""The keys and values of the tokens already seen, so that each new token costs one step."""

from __future__ import annotations

import torch
from torch import Tensor

from tinytf.model.config import TransformerConfig


class KVCache:
    """Keys and values of every layer, each ``[batch, n_kv_heads, past, head_dim]``.

    It is functional: growing makes new tensors and writes into none, so the same code traces and exports
    with ``past`` as a dynamic size, 0 included.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys = keys
        self.values = values

    @classmethod
    def empty(
        cls,
        config: TransformerConfig,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        """A cache that holds no token yet."""

        def nothing() -> list[Tensor]:
            # One tensor a layer: an exporter merges inputs that share one object.
            shape = (batch_size, config.kv_heads, 0, config.head_dim)
            return [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]

        return cls(nothing(), nothing())

    @property
    def length(self) -> int:
        """Tokens held. Read it before the first layer grows, or after the last has."""
        return self.keys[0].shape[2]

    def grow(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's new keys and values and return that layer's whole."""
        self.keys[layer] = torch.cat((self.keys[layer], keys), dim=2)
        self.values[layer] = torch.cat((self.values[layer], values), dim=2)
        return self.keys[layer], self.values[layer]
