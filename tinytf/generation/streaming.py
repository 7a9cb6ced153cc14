"""From token ids, one by one, to text that can be shown at once and never has to be taken back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What the first bytes of a character decode to while the rest is still to come, and wrong bytes always."""


class TextStream:
    """The text that each new token adds to a prompt; a character split over tokens comes complete, with its last.

    All that `add` and `finish` return, joined, is what decoding all ids at once adds to the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # Ids since the last but one point at which the text ended in a complete character. Some decoders treat the
        # first token of a text in their own way, so that a token is never decoded without one before it.
        self._ids = list(prompt)
        self._clean = len(self._ids)
        self._shown = len(self._decode(self._ids))

    def add(self, token: int) -> str:
        """The text that can be shown now that this token has come; empty inside a character."""
        self._ids.append(token)
        text = self._decode(self._ids)
        # Of wrong bytes only the last can still become a character.
        new = text[self._shown :].removesuffix(UNFINISHED)
        self._shown += len(new)
        if self._shown == len(text):
            self._ids = self._ids[self._clean :]
            self._clean = len(self._ids)
            self._shown = len(self._decode(self._ids))
        return new

    def finish(self) -> str:
        """The first bytes of a character whose rest did not come."""
        return self._decode(self._ids)[self._shown :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


class StopGate:
    """Lets text through up to the first stop string, keeping back what may yet become one.

    The first one that is complete counts, so that the cut does not depend on how the text was divided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._pending = ""
        self.closed = False

    def add(self, text: str) -> str:
        """What may be shown; sets `closed` once a stop string is complete."""
        assert not self.closed, "the text has ended"
        pending = self._pending + text
        found = [(pending.index(stop) + len(stop), pending.index(stop)) for stop in self._stops if stop in pending]
        if found:
            self.closed, self._pending = True, ""
            return pending[: min(found)[1]]
        keep = max((_overlap(pending, stop) for stop in self._stops), default=0)
        self._pending = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]

    def finish(self) -> str:
        """What was pending back and became no stop string."""
        pending, self._pending = self._pending, ""
        return pending


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text with which the stop string begins."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)


@dataclass
class Completion:
    """One completion of a prompt while it is generated.

    Attributes:
        ends: the ids that end it, and what `finish` then says.
        text: so far.
        pieces: what each token so far added to the text, stop strings and all.
        finish: None while it goes on, then ``length``, ``stop``, ``end_of_text`` or ``end_of_turn``.
    """

    seed: int
    stream: TextStream
    gate: StopGate
    ends: Mapping[int, str]
    text: str = ""
    pieces: list[str] = field(default_factory=list)
    finish: str | None = None

    @property
    def tokens(self) -> int:
        """Generated so far."""
        return len(self.pieces)

    def add(self, token: int) -> None:
        """Add one more token: text, the end of the text, or the end of a stop string."""
        if token in self.ends:
            self.close(self.ends[token])
            return
        self.pieces.append(self.stream.add(token))
        self.text += self.gate.add(self.pieces[-1])
        if self.gate.closed:
            self.finish = "stop"

    def close(self, reason: str) -> None:
        """End here, unless what was kept back completes a stop string."""
        self.text += self.gate.add(self.stream.finish()) + self.gate.finish()
        self.finish = "stop" if self.gate.closed else reason

    def report(self) -> dict[str, str | int | None]:
        """What ``--json`` prints of it."""
        return {"text": self.text, "tokens": self.tokens, "finish": self.finish, "seed": self.seed}
