"""Token after token, from anything that gives next-token logits: a checkpoint or an exported file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tinytf.generation.sampling import Sampling, sample
from tinytf.model.transformer import KVCache, Transformer


class Engine(Protocol):
    """What decoding needs of a model; it remembers the tokens of each row since the last `prefill`."""

    @property
    def vocab_size(self) -> int:
        """Entries in a row of logits."""

    @property
    def max_seq_len(self) -> int:
        """The longest context, in tokens."""

    def prefill(self, tokens: Tensor) -> Tensor:
        """Forget everything, read ids ``[batch, seq]``, and return the last position's logits ``[batch, vocab]``."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more id per row, ``[batch]``, and return its position's logits ``[batch, vocab]``."""

    def join(self, tokens: Tensor, every: bool = False) -> Tensor:
        """Add a last row, read its ids ``[seq]``, and return the last one's logits, ``[1, vocab]``, or of every one."""

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which are then numbered in this order."""


class TransformerEngine:
    """A [Transformer][tinytf.model.Transformer] with its KV cache, on the device of its weights."""

    def __init__(self, model: Transformer) -> None:
        self.model = model.eval()
        self.vocab_size = model.config.vocab_size
        self.max_seq_len = model.config.max_seq_len
        self.cache = self._no_tokens(0)

    def prefill(self, tokens: Tensor) -> Tensor:
        """Forget everything, read ids ``[batch, seq]``, return the last position's logits ``[batch, vocab_size]``."""
        self.cache = self._no_tokens(tokens.shape[0])
        return self._last_logits(tokens)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more id per row, ``[batch]``, return its position's logits ``[batch, vocab_size]``."""
        return self._last_logits(tokens[:, None])

    @torch.inference_mode()
    def join(self, tokens: Tensor, every: bool = False) -> Tensor:
        """Add a last row, read its ids ``[seq]``, return the last one's logits, ``[1, vocab]``, or of every one."""
        new = self._no_tokens(1)
        hidden = self.model.hidden(tokens[None].to(self.model.cos.device), new)[0]
        self.cache = self.cache.join(new)
        return self.model.unembed(hidden if every else hidden[-1:])

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which are then numbered in this order."""
        self.cache = self.cache.keep(torch.tensor(rows, dtype=torch.long, device=self.model.cos.device))

    def _no_tokens(self, rows: int) -> KVCache:
        weight = self.model.embed_tokens.weight
        return KVCache.empty(self.model.config, rows, weight.device, weight.dtype)

    @torch.inference_mode()
    def _last_logits(self, tokens: Tensor) -> Tensor:
        hidden = self.model.hidden(tokens.to(self.model.cos.device), self.cache)
        return self.model.unembed(hidden[:, -1])


def decode(
    engine: Engine,
    prompt: Sequence[int],
    sampling: Sampling,
    seeds: Sequence[int],
    on_slide: Callable[[str], None] | None = None,
) -> Iterator[Tensor]:
    """New tokens without end, ``[len(seeds)]`` ids at a time; each row is a completion of the prompt.

    Row i draws from a generator seeded with ``seeds[i]`` and nothing else, so it is the row that this one seed gives
    alone, as long as the rounding of a batched matrix product does not tip a draw.

    A text past ``engine.max_seq_len`` slides: its last ``max_seq_len // 2`` tokens are read again from position 0.
    That costs one prefill per half context, where dropping one token at a time would cost one per token.

    Args:
        prompt: ids, at least one.
        on_slide: called once, with a sentence, when tokens are dropped for the first time.

    Raises:
        ValueError: if there is no prompt.
        FloatingPointError: if the logits are not finite.
    """
    if not prompt:
        raise ValueError("decoding needs at least one token to start from")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    window = torch.tensor([list(prompt)] * len(seeds))
    fresh, slid = True, False
    while True:
        if window.shape[1] > engine.max_seq_len:
            if on_slide is not None and not slid:
                on_slide(_slide_notice(engine.max_seq_len))
            window = window[:, -max(1, engine.max_seq_len // 2) :]
            fresh = slid = True
        logits = engine.prefill(window) if fresh else engine.step(window[:, -1])
        fresh = False
        tokens = sample(logits.cpu(), sampling, generators)
        yield tokens
        window = torch.cat((window, tokens[:, None]), dim=1)


def _slide_notice(max_seq_len: int) -> str:
    return (
        f"the text is past max_seq_len {max_seq_len}: generation continues from its last "
        f"{max(1, max_seq_len // 2)} tokens, and again each time the context is full"
    )
