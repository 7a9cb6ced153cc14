"""Decoding against the same model without a cache, and what happens past its context."""

from itertools import islice

import pytest
import torch

from tinytf.generation.decoding import TransformerEngine, decode
from tinytf.generation.sampling import Sampling
from tinytf.model import Transformer, TransformerConfig

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module", name="model")
def trained_looking_model():
    torch.manual_seed(5)
    model = Transformer(TransformerConfig(vocab_size=50, d_model=32, n_heads=2, n_layers=2, max_seq_len=16))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model


def tokens_of(model, prompt, sampling, seeds, count, **settings):
    steps = decode(TransformerEngine(model), prompt, sampling, seeds, **settings)
    return torch.stack([*islice(steps, count)], dim=1).tolist()


@torch.no_grad()
def greedy_without_cache(model, prompt, count):
    """The documented rule, from scratch for each token: past the context, start again from its last half."""
    window, new = list(prompt), []
    for _ in range(count):
        if len(window) > model.config.max_seq_len:
            window = window[-(model.config.max_seq_len // 2) :]
        new.append(model(torch.tensor([window]))[0, -1].argmax().item())
        window.append(new[-1])
    return new


class Recorder:
    """An engine that knows nothing and remembers what it was asked."""

    vocab_size, max_seq_len = 10, 8

    def __init__(self):
        self.calls = []

    def prefill(self, tokens):
        self.calls.append(("prefill", tokens.tolist()))
        return self._next(tokens[:, -1])

    def step(self, tokens):
        self.calls.append(("step", tokens.tolist()))
        return self._next(tokens)

    def _next(self, last):
        return torch.nn.functional.one_hot((last + 1) % 10, 10).float()


@pytest.mark.parametrize("prompt", [[3], [1, 2, 3], list(range(16)), list(range(17)), list(range(40))], ids=len)
def test_greedy_tokens_are_those_of_the_model_without_a_cache(model, prompt):
    assert tokens_of(model, prompt, GREEDY, [0], 40) == [greedy_without_cache(model, prompt, 40)]


def test_each_token_is_read_once_until_the_context_is_full():
    engine = Recorder()
    new = [token.item() for token in islice(decode(engine, [1, 2, 3], GREEDY, [0]), 12)]
    assert new == [4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5]
    assert engine.calls == [
        ("prefill", [[1, 2, 3]]),
        *(("step", [token]) for token in (4, 5, 6, 7, 8)),
        ("prefill", [[6, 7, 8, 9]]),
        *(("step", [token]) for token in (0, 1, 2, 3)),
        ("prefill", [[1, 2, 3, 4]]),
    ]


def test_sliding_is_told_once():
    said = []
    [*islice(decode(Recorder(), [1], GREEDY, [0], on_slide=said.append), 8)]
    assert said == []
    [*islice(decode(Recorder(), [1], GREEDY, [0], on_slide=said.append), 40)]
    assert len(said) == 1
    assert "max_seq_len 8" in said[0]
    assert "last 4 tokens" in said[0]


def test_a_prompt_past_the_context_is_told_too():
    said, engine = [], Recorder()
    next(decode(engine, list(range(9)), GREEDY, [0], on_slide=said.append))
    assert engine.calls == [("prefill", [[5, 6, 7, 8]])]
    assert len(said) == 1


def test_a_context_of_one_token_still_slides(model):
    config = TransformerConfig(vocab_size=50, d_model=32, n_heads=2, n_layers=1, max_seq_len=1)
    assert len(tokens_of(Transformer(config), [1, 2], GREEDY, [0], 5)[0]) == 5


def test_a_sample_is_what_a_lone_run_with_its_seed_gives(model):
    together = tokens_of(model, [1, 2], Sampling(top_k=40), [7, 8, 9, 10], 60)
    alone = [tokens_of(model, [1, 2], Sampling(top_k=40), [seed], 60)[0] for seed in (7, 8, 9, 10)]
    assert together == alone
    assert len({tuple(row) for row in together}) == 4


def test_the_seed_decides_whatever_the_number_of_threads(model):
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            torch.rand(threads)  # the global generator must not matter
            runs.append(tokens_of(model, [1, 2], Sampling(), [0], 40))
    finally:
        torch.set_num_threads(before)
    assert runs[0] == runs[1] == runs[2]


def test_dropout_is_off_while_decoding():
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=50, d_model=32, n_heads=2, n_layers=1, dropout=0.9)
    engine = TransformerEngine(Transformer(config).train())
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(engine.prefill(tokens), engine.prefill(tokens))


def test_prefill_forgets_what_came_before(model):
    engine = TransformerEngine(model)
    first = engine.prefill(torch.tensor([[1, 2, 3]]))
    engine.step(torch.tensor([4]))
    assert torch.equal(engine.prefill(torch.tensor([[1, 2, 3]])), first)


def test_decoding_from_nothing_is_refused(model):
    with pytest.raises(ValueError, match="at least one token"):
        next(decode(TransformerEngine(model), [], GREEDY, [0]))
