"""Failures inside the decoding thread reach those who wait, and nobody else."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor

from tests.cli.tiny_checkpoint import tokenizer_of
from tinytf.generation.decoding import TransformerEngine
from tinytf.generation.sampling import Sampling
from tinytf.generation.streaming import Completion, StopGate, TextStream
from tinytf.model import Transformer, TransformerConfig
from tinytf.serve.scheduler import ClosedError, QueueFullError, Scheduler, Text

TOKENIZER = tokenizer_of("char")


class Fragile(TransformerEngine):
    """Fails at the prompt of id 3, and decodes NaN after that of id 4."""

    def join(self, tokens: Tensor, every: bool = False) -> Tensor:
        if tokens.tolist() == [3]:
            raise MemoryError("no room for the prompt")
        return super().join(tokens, every) * (float("nan") if tokens.tolist() == [4] else 1.0)


@pytest.fixture(name="scheduler")
def small_scheduler() -> Scheduler:
    torch.manual_seed(0)
    size = TOKENIZER.get_vocab_size()
    model = Transformer(TransformerConfig(size, d_model=32, n_heads=2, n_layers=1, max_seq_len=32))
    return Scheduler(Fragile(model), max_batch=2, max_queue=2)


def text(prompt: list[int], max_tokens: int = 5, seconds: float = 60.0) -> tuple[Text, threading.Event]:
    ended = threading.Event()
    completion = Completion(0, TextStream(TOKENIZER, prompt), StopGate(()), {})
    made = Text(prompt, completion, Sampling(1.0), max_tokens, None, False, time.monotonic() + seconds,
                lambda: ended.set() if made.done else None)  # fmt: skip
    return made, ended


def wait(*texts: tuple[Text, threading.Event]) -> None:
    for _, ended in texts:
        assert ended.wait(30)


def test_a_prompt_that_fails_ends_alone(scheduler: Scheduler) -> None:
    good, bad = text([1, 2], 20), text([3])
    scheduler.add([good[0], bad[0]])
    wait(good, bad)
    assert isinstance(bad[0].error, MemoryError)
    assert (good[0].error, good[0].completion.tokens, good[0].completion.finish) == (None, 20, "length")


def test_logits_that_are_not_finite_end_the_batch_and_the_next_texts_work(scheduler: Scheduler) -> None:
    bad = text([4])
    scheduler.add([bad[0]])
    wait(bad)
    assert isinstance(bad[0].error, FloatingPointError)
    good = text([1, 2])
    scheduler.add([good[0]])
    wait(good)
    assert (good[0].error, good[0].completion.tokens) == (None, 5)


def test_all_texts_of_a_request_are_taken_or_none(scheduler: Scheduler) -> None:
    running = [text([1], 10_000) for _ in range(3)]
    scheduler.add([each for each, _ in running])
    with pytest.raises(QueueFullError):
        scheduler.add([text([1])[0], text([1])[0]])
    last = text([1])
    scheduler.add([last[0]])
    scheduler.cancel([each for each, _ in running])
    wait(*running, last)
    assert all(isinstance(each.error, TimeoutError) for each, _ in running)
    assert last[0].completion.tokens == 5


def test_a_text_that_waits_too_long_ends_in_the_queue(scheduler: Scheduler) -> None:
    running, waiting = [text([1], 10_000) for _ in range(2)], text([1], 5, seconds=0.05)
    scheduler.add([*(each for each, _ in running), waiting[0]])
    wait(waiting)
    assert isinstance(waiting[0].error, TimeoutError)
    assert waiting[0].completion.tokens == 0
    scheduler.cancel([each for each, _ in running])


def test_after_closing_what_was_taken_ends_and_nothing_is_taken(scheduler: Scheduler) -> None:
    taken = text([1], 50)
    scheduler.add([taken[0]])
    scheduler.close()
    wait(taken)
    assert taken[0].completion.tokens == 50
    with pytest.raises(ClosedError):
        scheduler.add([text([1])[0]])
