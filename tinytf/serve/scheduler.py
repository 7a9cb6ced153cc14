"""Which texts a model decodes together: they wait in a queue, join between tokens, and leave when they end."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tinytf.generation.batching import Batch, Row
from tinytf.generation.decoding import Engine
from tinytf.generation.sampling import Sampling
from tinytf.generation.streaming import Completion


@dataclass(frozen=True)
class Likelihood:
    """Of one token, by the model's own distribution: temperature 1 and no cuts.

    Args:
        logprob: natural logarithm of its probability; None for a first token, which nothing comes before.
        likeliest: the most probable ids in its place, each with its logprob, the first one first.
    """

    logprob: float | None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Text:
    """One completion that was asked for. Its scheduler's thread writes it, others read it.

    Args:
        prompt: ids, at least one.
        max_tokens: the most that are generated; 0 reads the prompt alone.
        top: how many likeliest tokens are noted in each place; None notes no logprobs.
        score_prompt: note those of the prompt's tokens too.
        deadline: of `time.monotonic`.
        on_change: called by the scheduler's thread after each token, and when it ends.

    Attributes:
        ids: generated so far.
        likelihoods: of the prompt's tokens, if they are scored, and of the generated ones.
        error: why it ended before its time.
    """

    prompt: Sequence[int]
    completion: Completion
    sampling: Sampling
    max_tokens: int
    top: int | None
    score_prompt: bool
    deadline: float
    on_change: Callable[[], None]
    arrived: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    ended: float | None = None
    ids: list[int] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)
    error: Exception | None = None
    cancelled: bool = False

    @property
    def done(self) -> bool:
        return self.ended is not None

    def end(self, reason: str | Exception) -> None:
        """End it, with a reason as `Completion.finish` has it, or with what failed."""
        if isinstance(reason, Exception):
            self.error = reason
        elif self.completion.finish is None:
            self.completion.close(reason)
        self.ended = time.monotonic()
        self.on_change()


class QueueFullError(Exception):
    """As many texts wait as may."""


class ClosedError(Exception):
    """The server takes no more texts, because it stops."""


class Scheduler:
    """A thread that decodes up to ``max_batch`` texts together with one engine.

    A text does not depend on the others, as `Batch` says. A prompt is read at once when a place is free, while the
    others wait: reading 1,000 tokens takes about as long as 30 steps.

    Args:
        engine: used by this thread alone from now on.
        max_queue: how many texts may wait for a place.
    """

    def __init__(self, engine: Engine, max_batch: int, max_queue: int) -> None:
        self.max_batch, self.max_queue = max_batch, max_queue
        self.running: dict[Row, Text] = {}
        self.waiting: deque[Text] = deque()
        self._batch = Batch(engine)
        self._changed = threading.Condition()
        self._closed = False
        # A daemon, so that a failure of the server itself ends the process.
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, texts: Sequence[Text]) -> None:
        """Take all of them, or none.

        Raises:
            QueueFullError: if they would not all find a place now or in the queue.
            ClosedError: after `close`.
        """
        with self._changed:
            if self._closed:
                raise ClosedError
            if len(self.running) + len(self.waiting) + len(texts) > self.max_batch + self.max_queue:
                raise QueueFullError
            self.waiting.extend(texts)
            self._changed.notify()

    def cancel(self, texts: Sequence[Text]) -> None:
        """End them before the next token, if they have not ended: nobody waits for them any more."""
        for text in texts:
            text.cancelled = True

    def close(self) -> None:
        """Take no more, and end the thread when all that were taken have ended."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self.idle:
                    if self._closed:
                        return
                    self._changed.wait()
            try:
                self._admit()
                self._step()
            except Exception as error:  # Whatever it is, those who wait are told, and the next texts may work.
                failed = [*self.running.values()]
                self._batch.remove([*self._batch.rows])
                self.running.clear()
                for text in failed:
                    text.end(error)

    def _admit(self) -> None:
        """Let those in that waited longest, and forget those that wait in vain."""
        with self._changed:
            late = [text for text in self.waiting if text.cancelled or time.monotonic() > text.deadline]
            for text in late:
                self.waiting.remove(text)
        for text in late:
            text.end(TimeoutError())
        while len(self.running) < self.max_batch:
            with self._changed:
                if not self.waiting:
                    return
                text = self.waiting[0]
            try:
                row, logits = self._batch.add(text.prompt, text.sampling, text.completion.seed, every=text.score_prompt)
            except Exception as error:  # No memory for its prompt, say: the others go on.
                self._pop_waiting()
                text.end(error)
                continue
            # In both for a moment, so that `idle` and `add` never miss it.
            self.running[row] = text
            self._pop_waiting()
            if text.score_prompt and text.top is not None:
                text.likelihoods += prompt_likelihoods(logits, text.prompt, text.top)
            if text.max_tokens == 0:
                self._leave([row])
                text.end("length")

    def _pop_waiting(self) -> None:
        with self._changed:
            self.waiting.popleft()

    def _step(self) -> None:
        """One token for each."""
        now = time.monotonic()
        late = [row for row, text in self.running.items() if text.cancelled or now > text.deadline]
        ended = [self.running[row] for row in late]
        self._leave(late)
        for text in ended:
            text.end(TimeoutError())
        if not self.running:
            return
        tokens = dict(zip(self._batch.rows, self._batch.draw(), strict=True))
        now = time.monotonic()
        leaving = []
        for row, text in self.running.items():
            text.first_token = text.first_token or now
            self._take(text, tokens[row], row.logits)
            if text.completion.finish is not None or len(text.ids) == text.max_tokens:
                leaving.append(row)
        done = [self.running[row] for row in leaving]
        for text in self.running.values():
            if text not in done:
                text.on_change()
        self._leave(leaving)
        for text in done:
            text.end("length")
        self._batch.advance()

    def _take(self, text: Text, token: int, logits: Tensor) -> None:
        # The lists first: whoever reads the text meanwhile finds all that belongs to it.
        if token not in text.completion.ends:
            text.ids.append(token)
            if text.top is not None:
                text.likelihoods += likelihoods(logits[None], [token], text.top)
        text.completion.add(token)

    def _leave(self, rows: Sequence[Row]) -> None:
        self._batch.remove(rows)
        for row in rows:
            del self.running[row]


def likelihoods(logits: Tensor, tokens: Sequence[int], top: int) -> list[Likelihood]:
    """Of tokens, each in its place: logits ``[seq, vocab]`` of the distributions that they were drawn from."""
    # JSON has no -Infinity; OpenAI's servers write -9999 for it.
    logprobs = logits.double().log_softmax(dim=-1).clamp(min=-9999.0)
    values, ids = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    own = [float(row[token]) for row, token in zip(logprobs, tokens, strict=True)]
    return [
        Likelihood(each, tuple(zip(number, value, strict=True)))
        for each, number, value in zip(own, ids.tolist(), values.tolist(), strict=True)
    ]


def prompt_likelihoods(logits: Tensor, prompt: Sequence[int], top: int) -> list[Likelihood]:
    """Of a prompt's tokens; nothing comes before the first."""
    return [Likelihood(None), *likelihoods(logits[: len(prompt) - 1], prompt[1:], top)]
