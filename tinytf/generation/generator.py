"""A model and its tokenizer, from prompts to completions: the one way to text, for commands and for Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Tokenizer

from tinytf.data.tokenizer import encode, end_of_text
from tinytf.errors import UserError
from tinytf.generation.decoding import Engine, decode
from tinytf.generation.sampling import Sampling
from tinytf.generation.streaming import Completion, StopGate, TextStream


@dataclass(frozen=True)
class TextGenerator:
    """Completes prompts with an engine, wherever that was loaded from.

    Args:
        engine: gives next-token logits, and remembers the tokens so far.
        tokenizer: the one that the model was trained with.
        start_token: what an empty prompt starts from; None is a line feed. Use the end-of-text token only for a model
            that has seen it: one trained on a single text never has.
        chat_template: of the tokenizer, as Jinja; None if it came without one.
    """

    engine: Engine
    tokenizer: Tokenizer
    start_token: int | None = None
    chat_template: str | None = None

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
        """The prompt and its completion: what `tinytf generate` prints for the same settings, to the last character.

        Args:
            prompt: text to continue; if it is empty, generation starts from `start_token`.
            max_new_tokens: the most that is added, in tokens.
            temperature, top_k, top_p, min_p: see `Sampling`; temperature 0 is greedy decoding.
            seed: same seed, same text. The process's own random numbers are neither used nor changed.
            stop: texts to stop before.

        Raises:
            UserError: if the tokenizer does not know a character of the prompt.
            ValueError: if a setting is out of range; the message starts with its name.
            FloatingPointError: if the model's logits are not finite, because its training diverged.
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
        """The completion alone, piece by piece as it is decoded; arguments and errors are those of `generate`."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, but must be at least 1")
        if "" in stop:
            raise ValueError("stop holds an empty text: give the text to stop before")
        ids, shown = self.encode_prompt(prompt), 0
        completion = self.start_completion(ids, seed, stop)
        for _ in self.generate_batch(ids, sampling, [completion], max_new_tokens, _warn):
            if len(completion.text) > shown:
                yield completion.text[shown:]
                shown = len(completion.text)

    def encode_prompt(self, prompt: str) -> list[int]:
        """The prompt's ids, at least one; UserError if the tokenizer does not know a character of it."""
        if prompt:
            return encode(self.tokenizer, prompt)
        if self.start_token is not None:
            return [self.start_token]
        try:
            return encode(self.tokenizer, "\n")
        except UserError:  # An alphabet without a line feed.
            return [0]

    def start_completion(
        self, prompt: Sequence[int], seed: int, stop: Sequence[str] = (), ends: Mapping[int, str] | None = None
    ) -> Completion:
        """An empty completion of prompt ids, for `generate_batch`; it ends at the end of the text, or at ``ends``."""
        ends = end_of_text(self.tokenizer) if ends is None else ends
        return Completion(seed, TextStream(self.tokenizer, prompt), StopGate(stop), ends)

    def generate_batch(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        completions: Sequence[Completion],
        max_new_tokens: int,
        on_slide: Callable[[str], None],
    ) -> Iterator[None]:
        """Extend several completions of one prompt together; yields after each token, and once when all have ended.

        Raises:
            FloatingPointError: if the logits are not finite.
        """
        seeds = [completion.seed for completion in completions]
        for tokens in islice(decode(self.engine, prompt, sampling, seeds, on_slide=on_slide), max_new_tokens):
            for completion, token in zip(completions, tokens.tolist(), strict=True):
                if completion.finish is None:
                    completion.add(token)
            yield
            if all(completion.finish for completion in completions):
                return
        for completion in completions:
            if completion.finish is None:
                completion.close("length")
        yield


def available_device(wanted: str) -> str:
    """``cuda``, ``mps`` or ``cpu``; ``auto`` is the first of them that this machine has.

    Raises:
        UserError: if it has not; the message starts with ``device``.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(device for device in there if there[device])
    if wanted not in there:
        raise UserError(f"device {wanted}: expected auto, {', '.join(there)}")
    if not there[wanted]:
        raise UserError(f"device {wanted}: this machine has none that PyTorch {torch.__version__} can use")
    return wanted


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)
