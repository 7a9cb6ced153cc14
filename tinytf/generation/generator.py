"""A model and its tokenizer that speak: the one way to text, for `tinytf generate` and for Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Tokenizer

from tinytf.data.tokenizer import encode, end_of_text_id
from tinytf.errors import UserError
from tinytf.generation.decoding import Engine, decode
from tinytf.generation.sampling import Sampling
from tinytf.generation.streaming import Sample, StopGate, TextStream


@dataclass(frozen=True)
class Speaker:
    """What a text is written with, wherever it was loaded from.

    Args:
        engine: gives next-token logits, and remembers the text so far.
        tokenizer: the one that the model was trained with.
    """

    engine: Engine
    tokenizer: Tokenizer

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """The prompt and its continuation: what `tinytf generate` prints for the same settings, to the last character.

        Args:
            prompt: text to go on from; empty, it starts from ``<|endoftext|>`` or, without that, a line feed.
            max_new_tokens: the most that is added, in tokens.
            temperature, top_k, top_p, min_p: see `Sampling`; temperature 0 is greedy decoding.
            seed: same seed, same text. The process's own random numbers are neither used nor moved.
            stop: texts to stop before.

        Raises:
            UserError: where the tokenizer does not know a character of the prompt.
            ValueError: where a setting is out of range; the message starts with its name.
            FloatingPointError: where the model's logits are not finite, because its training diverged.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p)
        return prompt + "".join(self.stream(prompt, sampling, max_new_tokens=max_new_tokens, seed=seed, stop=stop))

    def stream(
        self,
        prompt: str = "",
        sampling: Sampling = Sampling(temperature=0.8),  # noqa: B008 - it is frozen
        *,
        max_new_tokens: int = 200,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """The continuation alone, in the pieces in which it comes; arguments and errors are those of `generate`."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, but must be at least 1")
        if "" in stop:
            raise ValueError("stop holds an empty text: give the text to stop before")
        start, shown = self.start(prompt), 0
        sample = self.sample(start, seed, stop)
        for _ in self.grow(start, sampling, [sample], max_new_tokens, warn):
            if len(sample.text) > shown:
                yield sample.text[shown:]
                shown = len(sample.text)

    def start(self, prompt: str) -> list[int]:
        """The prompt's ids, at least one; without a prompt, where a text begins.

        Raises:
            UserError: where the tokenizer does not know a character of it.
        """
        if prompt:
            return encode(self.tokenizer, prompt)
        end = end_of_text_id(self.tokenizer)
        return first_line(self.tokenizer) if end is None else [end]

    def sample(self, start: Sequence[int], seed: int, stop: Sequence[str] = ()) -> Sample:
        """An empty continuation of the ids ``start``, to be grown."""
        return Sample(seed, TextStream(self.tokenizer, start), StopGate(stop), end_of_text_id(self.tokenizer))

    def grow(
        self,
        start: Sequence[int],
        sampling: Sampling,
        samples: Sequence[Sample],
        max_new_tokens: int,
        on_slide: Callable[[str], None],
    ) -> Iterator[None]:
        """Let all samples grow side by side until each has ended; yields after each token, and once at the end.

        Raises:
            FloatingPointError: where the logits are not finite.
        """
        steps = decode(self.engine, start, sampling, [sample.seed for sample in samples], on_slide=on_slide)
        for tokens in islice(steps, max_new_tokens):
            for sample, token in zip(samples, tokens.tolist(), strict=True):
                if sample.finish is None:
                    sample.add(token)
            yield
            if all(sample.finish for sample in samples):
                return
        for sample in samples:
            if sample.finish is None:
                sample.close("length")
        yield


def available_device(wanted: str) -> str:
    """``cuda``, ``mps`` or ``cpu``; ``auto`` is the first of them that is there.

    Raises:
        UserError: where it is not; the message starts with ``device``.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(device for device in there if there[device])
    if wanted not in there:
        raise UserError(f"device {wanted}: give auto, {', '.join(there)}")
    if not there[wanted]:
        raise UserError(f"device {wanted}: this machine has none that PyTorch {torch.__version__} can use")
    return wanted


def first_line(tokenizer: Tokenizer) -> list[int]:
    """A line feed as ids, or token 0 where the tokenizer does not know it."""
    try:
        return encode(tokenizer, "\n")
    except UserError:
        return [0]


def warn(message: str) -> None:
    """Python's way to say what the command line notes on stderr."""
    warnings.warn(message, stacklevel=2)
