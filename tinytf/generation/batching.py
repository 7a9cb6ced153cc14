"""Many texts at once, each with its own prompt, sampling and seed: they join and leave between tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tinytf.generation.decoding import Engine
from tinytf.generation.sampling import Sampling, sample


@dataclass(eq=False)
class Row:
    """One text in a `Batch`.

    Args:
        window: the ids that the engine has read, or is about to.
        logits: of the next token, ``[vocab]`` on the CPU.
        slid: whether its first tokens were dropped, because the context was full.
    """

    window: list[int]
    sampling: Sampling
    generator: torch.Generator
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    slid: bool = False


class Batch:
    """Texts that an engine decodes together, one token each per step; a row has the tokens of `decode` for it alone.

    That holds as long as the rounding of a batched matrix product does not tip a draw.

    A step is `draw`, then `remove` of what has ended, then `advance`. The engine is the batch's own.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows: list[Row] = []
        engine.keep([])

    def add(self, prompt: Sequence[int], sampling: Sampling, seed: int, every: bool = False) -> tuple[Row, Tensor]:
        """Read a prompt of at least one id.

        Of a prompt past the engine's ``max_seq_len`` the last half context is read, as `decode` does.

        Args:
            every: return the logits of each position that was read, for the probability of the prompt itself.

        Returns:
            Its row, and logits ``[1, vocab]`` of the last position, or ``[seq, vocab]``.
        """
        if not prompt:
            raise ValueError("decoding needs at least one token to start from")
        row = Row(list(prompt), sampling, torch.Generator().manual_seed(seed))
        self._slide(row)
        return row, self._join(row, every)

    def remove(self, rows: Sequence[Row]) -> None:
        """Forget texts."""
        if rows:
            kept = [number for number, row in enumerate(self.rows) if row not in rows]
            self.engine.keep(kept)
            self.rows = [self.rows[number] for number in kept]

    def draw(self) -> list[int]:
        """The next token of each row, which the texts then end with.

        Raises:
            FloatingPointError: if logits are not finite.
        """
        tokens = [0] * len(self.rows)
        for sampling in dict.fromkeys(row.sampling for row in self.rows):
            numbers = [number for number, row in enumerate(self.rows) if row.sampling == sampling]
            logits = torch.stack([self.rows[number].logits for number in numbers])
            drawn = sample(logits, sampling, [self.rows[number].generator for number in numbers])
            for number, token in zip(numbers, drawn.tolist(), strict=True):
                tokens[number] = token
        for row, token in zip(self.rows, tokens, strict=True):
            row.window.append(token)
        return tokens

    def advance(self) -> None:
        """Read the drawn tokens: the logits of the next ones."""
        full = [row for row in self.rows if len(row.window) > self.engine.max_seq_len]
        self.remove(full)
        if self.rows:
            logits = self.engine.step(torch.tensor([row.window[-1] for row in self.rows])).cpu()
            for row, own in zip(self.rows, logits, strict=True):
                row.logits = own
        for row in full:
            self._slide(row)
            self._join(row)

    def _slide(self, row: Row) -> None:
        if len(row.window) > self.engine.max_seq_len:
            row.window = row.window[-max(1, self.engine.max_seq_len // 2) :]
            row.slid = True

    def _join(self, row: Row, every: bool = False) -> Tensor:
        logits = self.engine.join(torch.tensor(row.window), every).cpu()
        row.logits = logits[-1]
        self.rows.append(row)
        return logits
