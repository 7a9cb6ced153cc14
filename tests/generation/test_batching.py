"""Texts that are decoded together against the same texts alone."""

from itertools import islice

import pytest
import torch

from tinytf.generation.batching import Batch
from tinytf.generation.decoding import TransformerEngine, decode
from tinytf.generation.sampling import Sampling
from tinytf.model import KVCache, Transformer, TransformerConfig


@pytest.fixture(scope="module", name="model", params=[(2, True), (1, False)], ids=["qwen3", "llama, grouped"])
def trained_looking_model(request):
    kv_heads, qk_norm = request.param
    torch.manual_seed(5)
    config = TransformerConfig(
        vocab_size=50, d_model=32, n_heads=2, n_kv_heads=kv_heads, qk_norm=qk_norm, n_layers=2, max_seq_len=16
    )
    model = Transformer(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model.double()  # So that rounding never decides between two tokens.


def alone(model, prompt, sampling, seed, count):
    return [int(token) for token in islice(decode(TransformerEngine(model), prompt, sampling, [seed]), count)]


def test_texts_that_join_and_leave_at_odd_times_are_those_they_are_alone(model):
    """Past the context of 16 too, where a text goes on from its last half."""
    draw = torch.Generator().manual_seed(1)
    jobs = []
    for number in range(24):
        length = int(torch.randint(1, 20, (), generator=draw))
        prompt = torch.randint(0, 50, (length,), generator=draw).tolist()
        sampling = [Sampling(0.0), Sampling(1.0), Sampling(0.7, top_k=9, min_p=0.02)][number % 3]
        jobs.append((prompt, sampling, number, int(torch.randint(1, 40, (), generator=draw))))
    batch, waiting, texts, rows = Batch(TransformerEngine(model)), list(enumerate(jobs)), {}, {}
    most = 0
    while waiting or rows:
        while waiting and len(rows) < 5 and (not rows or torch.rand((), generator=draw) < 0.4):
            number, (prompt, sampling, seed, _) = waiting.pop()
            row, logits = batch.add(prompt, sampling, seed)
            assert logits.shape == (1, 50)
            rows[row], texts[number] = number, []
        most = max(most, len(rows))
        batch.draw()
        for row in batch.rows:
            texts[rows[row]].append(row.window[-1])
        ended = [row for row, number in rows.items() if len(texts[number]) == jobs[number][3]]
        batch.remove(ended)
        for row in ended:
            del rows[row]
        batch.advance()
    assert most > 2
    for number, (prompt, sampling, seed, count) in enumerate(jobs):
        assert texts[number] == alone(model, prompt, sampling, seed, count), number


def test_every_position_of_a_prompt_is_given_when_asked(model):
    batch = Batch(TransformerEngine(model))
    batch.add([3, 4], Sampling(0.0), 0)
    row, logits = batch.add([1, 2, 3, 4, 5], Sampling(0.0), 0, every=True)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(torch.tensor([[1, 2, 3, 4, 5]]))[0])
    assert torch.equal(row.logits, logits[-1])


def test_a_text_needs_a_prompt(model):
    with pytest.raises(ValueError, match="at least one token"):
        Batch(TransformerEngine(model)).add([], Sampling(0.0), 0)


def test_rows_leave_no_columns_behind(model):
    """Else the cache would grow by one column a step for as long as a server runs."""
    engine = TransformerEngine(model)
    batch = Batch(engine)
    long, _ = batch.add(list(range(12)), Sampling(0.0), 0)
    batch.add([1, 2], Sampling(0.0), 0)
    assert engine.cache.length == 12
    batch.remove([long])
    assert engine.cache.length == 2
    assert engine.cache.padding is None


def test_joined_caches_are_those_of_their_rows(model):
    config = model.config
    one, two = (KVCache.empty(config, 1, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3, 4, 5]]), one)
        model(torch.tensor([[6, 7]]), two)
        both = one.join(two)
        logits = model(torch.tensor([[8], [9]]), both)
        torch.testing.assert_close(logits[0, 0], model(torch.tensor([[1, 2, 3, 4, 5, 8]]))[0, -1])
        torch.testing.assert_close(logits[1, 0], model(torch.tensor([[6, 7, 9]]))[0, -1])
