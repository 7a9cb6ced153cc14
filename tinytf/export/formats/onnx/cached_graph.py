"""A graph with key-values in onnxruntime: a call at a time, as a parity runner, and rows that join and leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinytf.export.formats.onnx.graph import Array
from tinytf.export.parity.runner import Feed, Runner
from tinytf.model import KVCache

PAST, PRESENT = "past_key_values", "present"
IDS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"
INPUTS = (IDS, MASK, POSITIONS)
"""Before the key-values; the names are those of Hugging Face's optimum, which other programs look for."""

SHARED_SCALE = "DynamicQuantizeLinear"
"""The operator whose one scale for a whole tensor lets the rows of a batch round each other's activations."""

PADDING = 3
"""Columns without a token before the batches that a graph in float32 is compared on: its mask must hide them."""


def cache_names(prefix: str, layers: int) -> list[str]:
    """Names of the key-value inputs or outputs."""
    return [f"{prefix}.{layer}.{half}" for layer in range(layers) for half in ("key", "value")]


def runtime_name() -> str:
    """Name and version, for the report."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


class CachedGraph:
    """Logits and present key-values from new ids and past key-values.

    Args:
        session: of a graph with the inputs and outputs of `tinytf.export.formats.onnx.WithCache`.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        past = [node for node in session.get_inputs() if node.name.startswith(PAST)]
        self._past_names = [node.name for node in past]
        self._sizes = [(node.shape[1], node.shape[3]) for node in past]
        self._outputs = [node.name for node in session.get_outputs()]

    def no_tokens(self, rows: int, columns: int) -> list[Array]:
        """Key-values of rows that have read nothing, with so many columns of padding."""
        return [np.zeros((rows, heads, columns, size), np.float32) for heads, size in self._sizes]

    def read(self, tokens: Tensor, past: list[Array], padding: Tensor | None = None) -> tuple[Tensor, list[Array]]:
        """Logits of new ids ``[rows, new]``, ``[rows, new, vocab_size]``, and the present key-values.

        Args:
            padding: by how many columns each row's first token is late, ``[rows]``; None if none is.
        """
        rows, new = tokens.shape
        length = past[0].shape[2]
        if padding is None:
            mask = np.ones((rows, length + new), np.int64)
            positions = np.empty((rows, new), np.int64)
            positions[:] = np.arange(length, length + new)
        else:
            own = np.arange(length + new) - padding.numpy()[:, None]
            mask, positions = (own >= 0).astype(np.int64), own[:, length:].clip(min=0)
        feed = {IDS: tokens.numpy(), MASK: mask, POSITIONS: positions, **dict(zip(self._past_names, past, strict=True))}
        logits, *present = self._session.run(self._outputs, feed)
        return torch.from_numpy(logits), present


def cached_runner(session: Any, padding: int = 0) -> Runner:
    """A session whose keys and values go back in at each step.

    Args:
        padding: so many columns of a batch hold no token before it begins. They must change nothing, unless the graph
            rounds all rows in steps of one size.
    """
    graph = CachedGraph(session)

    def start(batch_size: int) -> Feed:
        group = Group.empty(graph, batch_size, padding if batch_size > 1 else 0)

        def feed(tokens: Tensor) -> Tensor:
            nonlocal group
            logits, group = group.read(tokens)
            return logits

        return feed

    return Runner(runtime_name(), start)


@dataclass(frozen=True)
class Group:
    """Rows that a graph reads in one run, each at a length of its own: the shorter ones are padded on the left.

    Args:
        past: key-values, as `CachedGraph.read` gives them.
        padding: see `CachedGraph.read`.
    """

    graph: CachedGraph
    past: list[Array]
    padding: Tensor | None = None

    @classmethod
    def empty(cls, graph: CachedGraph, rows: int, columns: int = 0) -> Group:
        """Rows that have read nothing, with so many columns of padding."""
        return cls(graph, graph.no_tokens(rows, columns), torch.full((rows,), columns) if columns else None)

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        columns: int = self.past[0].shape[2]
        return columns

    def read(self, tokens: Tensor) -> tuple[Tensor, Group]:
        """Logits ``[rows, new, vocab_size]`` of new ids of each row, ``[rows, new]``, and the rows with them."""
        logits, present = self.graph.read(tokens, self.past, self.padding)
        return logits, Group(self.graph, present, self.padding)

    def join(self, other: Group) -> Group:
        """The rows of both."""
        return self._of(self._cache().join(other._cache()))

    def keep(self, rows: Sequence[int]) -> Group:
        """These rows alone."""
        return self._of(self._cache().keep(torch.tensor(rows, dtype=torch.long)))

    def _cache(self) -> KVCache:
        tensors = [torch.from_numpy(half) for half in self.past]
        return KVCache(tensors[0::2], tensors[1::2], self.padding)

    def _of(self, cache: KVCache) -> Group:
        halves = (half for layer in zip(cache.keys, cache.values, strict=True) for half in layer)
        return replace(self, past=[half.contiguous().numpy() for half in halves], padding=cache.padding)
