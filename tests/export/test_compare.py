"""The proof itself: it passes what is right and catches every planted bug."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from tests.export.small_model import reference_of, small_model
from tinytf.export.formats.onnx.fused_projections import FusedTransformer
from tinytf.export.parity.cases import Evaluation
from tinytf.export.parity.compare import ParityMetrics, ReferenceLogits, compare
from tinytf.export.parity.runner import Feed, Runner, eager
from tinytf.export.parity.thresholds import THRESHOLDS, breaches
from tinytf.model import Transformer, TransformerConfig
from tinytf.model.transformer import rotary_tables
from tinytf.weights.checkpoint import LoadedModel


@cache
def measured(plant: Callable[[Transformer], None], model: Transformer, evaluation: Evaluation) -> ParityMetrics:
    artifact = copy.deepcopy(model)
    plant(artifact)
    return compare(eager(artifact), reference_of(model, evaluation))


def other_eps(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            module.eps = 1e-6


def last_position_off(model: Transformer) -> None:
    model.cos[-1] = 1.0
    model.sin[-1] = 0.0


def other_base(model: Transformer) -> None:
    model.cos, model.sin = rotary_tables(replace(model.config, rope_theta=10_001.0))


def interleaved(model: Transformer) -> None:
    for block in model.layers:
        for name, heads in (("q_proj", model.config.n_heads), ("k_proj", model.config.kv_heads)):
            weight = getattr(block.self_attn, name).weight
            weight.data = weight.data.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def gate_up_swapped(model: Transformer) -> None:
    mlp = model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


def last_row_zeroed(model: Transformer) -> None:
    model.embed_tokens.weight.data[-1] = 0.0


def final_norm_lost(model: Transformer) -> None:
    nn.init.ones_(model.norm.weight)


def one_weight_off(model: Transformer) -> None:
    model.layers[0].mlp.up_proj.weight.data[3, 5] += 0.01


BUGS = [
    other_eps,
    last_position_off,
    other_base,
    interleaved,
    gate_up_swapped,
    last_row_zeroed,
    final_norm_lost,
    one_weight_off,
]


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_every_planted_bug_is_caught(
    plant: Callable[[Transformer], None], loaded: LoadedModel, evaluation: Evaluation
) -> None:
    found = measured(plant, loaded.model, evaluation)
    assert breaches(found, THRESHOLDS["fp32"]), found
    # With room to spare, or the next model's bug of this kind would pass.
    assert found.max_abs > 2 * THRESHOLDS["fp32"]["max_abs"]


def test_top1_alone_would_pass_some_of_them(loaded: LoadedModel, evaluation: Evaluation) -> None:
    passed = [plant.__name__ for plant in BUGS if measured(plant, loaded.model, evaluation).top1 == 1.0]
    assert "one_weight_off" in passed
    assert "other_base" in passed


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 4}, {"qk_norm": False}], ids=["grouped", "full", "llama"])
def test_the_fused_transformer_is_the_same_function(changes: dict[str, object], evaluation: Evaluation) -> None:
    model = small_model(int(evaluation.windows.max()) + 1, **changes)
    found = compare(fused(model), reference_of(model, evaluation))
    assert breaches(found, THRESHOLDS["fp32"]) == []
    assert 0 < found.max_abs < 5e-5


def fused(model: Transformer) -> Runner:
    """The module that is exported, run eagerly."""
    graph, config = FusedTransformer(model), model.config

    def start(batch_size: int) -> Feed:
        empty = (batch_size, config.kv_heads, 0, config.head_size)
        past = [torch.zeros(empty) for _ in range(2 * config.n_layers)]

        def feed(tokens: torch.Tensor) -> torch.Tensor:
            nonlocal past
            length = past[0].shape[2]
            total = length + tokens.shape[1]
            positions = torch.arange(length, total).expand_as(tokens)
            logits, *past = graph(tokens, torch.ones(batch_size, total), positions, past)
            return logits

        return feed

    return Runner("fused", start)


def test_a_cache_that_forgets_is_caught(loaded: LoadedModel, evaluation: Evaluation) -> None:
    model = loaded.model

    def start(batch_size: int) -> Feed:
        return lambda tokens: model(tokens)

    found = compare(Runner("forgetful", start), reference_of(model, evaluation))
    assert found.greedy < 1.0
    assert breaches(found, THRESHOLDS["fp32"])


def test_a_batch_that_mixes_rows_is_caught(loaded: LoadedModel, evaluation: Evaluation) -> None:
    whole = eager(loaded.model)

    def start(batch_size: int) -> Feed:
        feed = whole.start(batch_size)
        return lambda tokens: feed(tokens).roll(1, dims=0)

    assert breaches(compare(Runner("rolled", start), reference_of(loaded.model, evaluation)), THRESHOLDS["fp32"])


def test_a_wrong_row_that_held_out_text_never_reads_is_caught(loaded: LoadedModel, evaluation: Evaluation) -> None:
    """The head's row is right, and no window holds the token: only reading every id shows it."""
    unread = loaded.model.config.vocab_size - 1
    windows = torch.where(evaluation.windows == unread, 0, evaluation.windows)
    artifact = copy.deepcopy(loaded.model)
    table = artifact.embed_tokens.weight.detach().clone()
    table[unread] += 0.01

    def start(batch_size: int) -> Feed:
        feed = eager(artifact).start(batch_size)

        def fed(tokens: torch.Tensor) -> torch.Tensor:
            with swapped_rows(artifact, table):
                return feed(tokens)

        return fed

    found = compare(Runner("one row", start), ReferenceLogits(loaded.model, Evaluation(windows, "without the last id")))
    assert found.loss == found.reference_loss
    assert breaches(found, THRESHOLDS["fp32"])


@contextmanager
def swapped_rows(model: Transformer, table: torch.Tensor) -> Iterator[None]:
    """Tokens are looked up in another table than the head's."""
    handle = model.embed_tokens.register_forward_hook(lambda module, args, output: table[args[0]])
    try:
        yield
    finally:
        handle.remove()


def test_a_mask_that_is_wrong_only_for_a_chunk_after_a_past_is_caught(
    loaded: LoadedModel, evaluation: Evaluation
) -> None:
    model = loaded.model

    def start(batch_size: int) -> Feed:
        whole, seen = eager(model).start(batch_size), 0

        def feed(tokens: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            logits, past = whole(tokens), seen
            seen += tokens.shape[1]
            # The whole of such a chunk sees its last token.
            return logits if past == 0 else logits[:, -1:].expand_as(logits)

        return feed

    found = compare(Runner("leaking", start), reference_of(model, evaluation))
    assert found.greedy == found.top1 == 1.0
    assert breaches(found, THRESHOLDS["fp32"])


@pytest.mark.parametrize("precision", list(THRESHOLDS))
def test_nan_is_past_every_threshold(precision: str, loaded: LoadedModel, evaluation: Evaluation) -> None:
    """One NaN, in the last case but not in the first."""
    whole = eager(loaded.model)

    def start(batch_size: int) -> Feed:
        feed = whole.start(batch_size)

        def poisoned(tokens: torch.Tensor) -> torch.Tensor:
            logits = feed(tokens).clone()
            if batch_size == 5:
                logits[0, 0, 0] = float("nan")
            return logits

        return poisoned

    found = compare(Runner("poisoned", start), reference_of(loaded.model, evaluation))
    assert breaches(found, THRESHOLDS[precision])


def test_the_numbers_are_those_of_their_definitions(loaded: LoadedModel, evaluation: Evaluation) -> None:
    """Adding a constant to one logit: everything about the difference is known."""
    model, shift = loaded.model, 0.5

    def start(batch_size: int) -> Feed:
        feed = eager(model).start(batch_size)

        def shifted(tokens: torch.Tensor) -> torch.Tensor:
            logits = feed(tokens).clone()
            logits[..., 2] += shift
            return logits

        return shifted

    found = compare(Runner("shifted", start), reference_of(model, evaluation))
    inputs, targets = evaluation.windows[:, :-1], evaluation.windows[:, 1:]
    with torch.no_grad():
        wanted = model(inputs).double()
    moved = wanted.clone()
    moved[..., 2] += shift
    p, q = torch.distributions.Categorical(logits=wanted), torch.distributions.Categorical(logits=moved)
    kl = torch.distributions.kl_divergence(p, q)
    assert found.max_abs == pytest.approx(shift, rel=1e-4)
    assert found.relative == pytest.approx(shift / float(wanted.std()), rel=1e-3)
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found.kl_max == pytest.approx(float(kl.max()), rel=1e-3)
    assert found.loss == pytest.approx(float(-q.log_prob(targets).mean()), rel=1e-5)
    assert found.reference_loss == pytest.approx(float(-p.log_prob(targets).mean()), rel=1e-5)
    assert found.top1 == pytest.approx(float((wanted.argmax(-1) == moved.argmax(-1)).double().mean()), abs=1e-9)
    assert found.tokens == targets.numel()


def test_a_tie_is_not_an_error(evaluation: Evaluation) -> None:
    """Two rows of the embedding alike: which of the two is larger is chance."""
    model = small_model(int(evaluation.windows.max()) + 1)
    model.embed_tokens.weight.data[3] = model.embed_tokens.weight.data[4]
    other = copy.deepcopy(model)
    other.embed_tokens.weight.data[3] *= 1 + 1e-7
    assert compare(eager(other), reference_of(model, evaluation)).top1 == 1.0


def test_it_works_on_a_context_of_two(evaluation: Evaluation) -> None:
    model = small_model(int(evaluation.windows.max()) + 1, max_seq_len=2)
    short = Evaluation(evaluation.windows[:, :3], "short")
    assert breaches(compare(eager(model), ReferenceLogits(model, short)), THRESHOLDS["fp32"]) == []


def test_fresh_weights_would_hide_what_these_show() -> None:
    """Why the other tests spread their weights: on a fresh model a lost final norm moves nothing but the scale."""
    torch.manual_seed(0)
    fresh = Transformer(TransformerConfig(31, d_model=64, n_heads=4, n_layers=2, max_seq_len=48)).eval()
    evaluation = Evaluation(torch.randint(0, 31, (4, 49)), "random ids")
    broken = copy.deepcopy(fresh)
    gate_up_swapped(broken)
    interleaved(broken)
    other_base(broken)
    assert compare(eager(broken), ReferenceLogits(fresh, evaluation)).max_abs < THRESHOLDS["fp32"]["max_abs"]
