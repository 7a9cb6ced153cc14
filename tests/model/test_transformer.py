"""What must hold of the network whatever its size.

Weights are perturbed: in a fresh model the matrices that start at zero hide what stands before them.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinytf.model import KVCache, RopeScaling, Transformer, TransformerConfig

LAYOUTS = {
    "qwen3": {},
    "qwen3 grouped": {"n_kv_heads": 2},
    "llama": {"qk_norm": False},
    "llama one kv head": {"n_kv_heads": 1, "qk_norm": False},
    "qwen3 untied, wide heads": {"n_kv_heads": 2, "head_dim": 12, "tie_embeddings": False},
    "linear scaling": {"rope_scaling": RopeScaling("linear", 4.0)},
    "llama3 scaling, untied": {
        "qk_norm": False,
        "tie_embeddings": False,
        # With heads of 8 the frequencies are 1, 0.1, 0.01, 0.001: kept, in between, and divided twice.
        "rope_scaling": RopeScaling("llama3", 8.0, original_max_seq_len=96),
    },
}


def small(**settings):
    base = {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 24}
    return TransformerConfig(**{**base, **settings})


def perturbed(config):
    """A model in which every weight matters: nothing zero, no norm uniform, logits a few units apart."""
    torch.manual_seed(3)
    model = Transformer(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * (0.3 if weight.dim() == 1 else 0.05))
    return model


@pytest.fixture(params=LAYOUTS, name="model")
def every_layout(request):
    return perturbed(small(**LAYOUTS[request.param]))


@torch.no_grad()
def test_a_token_moves_its_own_logits_and_later_ones_and_none_before(model):
    tokens = torch.randint(61, (2, 24))
    before = model(tokens)
    for position in (0, 1, 11, 23):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 7) % 61
        moved = (model(changed) - before).abs().amax(dim=(0, 2))
        assert torch.equal(moved[:position], torch.zeros(position))
        assert (moved[position:] > 1e-4).all(), f"a change at {position} must reach every later position"


@torch.no_grad()
def test_attention_sees_order(model):
    """Without positions, swapping two earlier tokens would leave the last logits as they are (one block)."""
    one_block = perturbed(small(n_layers=1, qk_norm=model.config.qk_norm, n_kv_heads=model.config.n_kv_heads))
    tokens = torch.arange(10)[None]
    swapped = tokens.clone()
    swapped[0, [2, 6]] = tokens[0, [6, 2]]
    assert (one_block(tokens)[0, -1] - one_block(swapped)[0, -1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("chunks", [[1] * 24, [24], [1, 23], [7, 1, 1, 10, 5]], ids=["one by one", "at once", "1", "7"])
def test_cached_decoding_equals_the_full_forward(model, chunks, dtype, tolerance):
    model = model.to(dtype)
    tokens = torch.randint(61, (3, 24))
    cache = KVCache.empty(model.config, batch_size=3, dtype=dtype)
    pieces = [model(chunk, cache) for chunk in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=tolerance, rtol=0)
    assert cache.length == 24


@torch.no_grad()
def test_batch_rows_do_not_see_each_other(model):
    tokens = torch.randint(61, (4, 9))
    alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), alone, atol=1e-5, rtol=0)


def rms_norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def frequency(pair, half, theta, scaling):
    """Radians per position of one pair, by Llama 3.1's rule of wave lengths if it is asked for."""
    plain = theta ** (-pair / half)
    if scaling is None:
        return plain
    slow = plain / scaling.factor
    if scaling.rope_type == "linear":
        return slow
    wavelength, original = 2 * math.pi / plain, scaling.original_max_seq_len
    if wavelength < original / scaling.high_freq_factor:
        return plain
    if wavelength > original / scaling.low_freq_factor:
        return slow
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = (original / wavelength - low) / (high - low)
    return (1 - share) * slow + share * plain


def turned(x, config):
    """Each pair (i, i + half) of a head as a complex number, turned by position times frequency."""
    half = x.shape[-1] // 2
    speed = torch.tensor([frequency(i, half, config.rope_theta, config.rope_scaling) for i in range(half)])
    angle = torch.arange(x.shape[-2])[:, None] * speed
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


def by_hand(model, tokens):
    """The network once more, written from the papers: complex rotations, an explicit softmax, repeated heads."""
    config, weights = model.config, dict(model.named_parameters())
    repeats = config.n_heads // config.kv_heads
    x = weights["embed_tokens.weight"][tokens]
    for layer in range(config.n_layers):
        at = f"layers.{layer}."
        normed = rms_norm(x, weights[at + "input_layernorm.weight"], config.norm_eps)
        q, k, v = (
            (normed @ weights[f"{at}self_attn.{name}_proj.weight"].T)
            .unflatten(-1, (-1, config.head_size))
            .transpose(1, 2)
            for name in "qkv"
        )
        if config.qk_norm:
            q = rms_norm(q, weights[at + "self_attn.q_norm.weight"], config.norm_eps)
            k = rms_norm(k, weights[at + "self_attn.k_norm.weight"], config.norm_eps)
        q, k = turned(q, config), turned(k, config)
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        scores = q @ k.mT / math.sqrt(config.head_size)
        future = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        x = x + y.transpose(1, 2).flatten(2) @ weights[at + "self_attn.o_proj.weight"].T
        normed = rms_norm(x, weights[at + "post_attention_layernorm.weight"], config.norm_eps)
        gate, up, down = (weights[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up", "down"))
        x = x + (F.silu(normed @ gate) * (normed @ up)) @ down
    unembedding = weights["embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"]
    return rms_norm(x, weights["norm.weight"], config.norm_eps) @ unembedding.T


@torch.no_grad()
def test_logits_are_those_of_the_papers(model):
    tokens = torch.randint(61, (2, 24))
    torch.testing.assert_close(model(tokens), by_hand(model, tokens), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"d_model": 30, "n_heads": 4}, ["30", "4", "d_model", "n_heads"]),
        ({"d_model": 36, "n_heads": 4}, ["36", "4", "9", "even"]),
        ({"n_heads": 4, "n_kv_heads": 3}, ["4", "3", "n_kv_heads"]),
        ({"n_layers": 0}, ["n_layers", "0"]),
        ({"n_kv_heads": 0}, ["n_kv_heads", "0"]),
        ({"dropout": 1.0}, ["dropout", "1.0"]),
        ({"norm_eps": 0.0}, ["norm_eps", "0.0"]),
        ({"head_dim": 7}, ["head_dim", "7", "even"]),
        ({"head_dim": 0}, ["head_dim", "0"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ["rope_scaling.rope_type", "yarn", "llama3"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, ["rope_scaling.factor", "0.5"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, ["rope_scaling.factor", "'2'"]),
        ({"rope_scaling": {"factor": 2.0}}, ["rope_scaling.rope_type", "missing"]),
        ({"rope_scaling": 3}, ["rope_scaling", "3", "mapping"]),
        ({"rope_scaling": RopeScaling("llama3", 2.0, 4.0, 1.0)}, ["rope_scaling.low_freq_factor", "4.0", "1.0"]),
    ],
    ids=str,
)
def test_a_shape_that_does_not_fit_is_refused_by_its_numbers(settings, named):
    with pytest.raises(ValueError, match=r".") as caught:
        small(**settings)
    assert all(part in str(caught.value) for part in named)


@torch.no_grad()
def test_past_max_seq_len_is_refused_with_and_without_a_cache(model):
    with pytest.raises(ValueError, match="25 tokens is past max_seq_len 24"):
        model(torch.zeros(1, 25, dtype=torch.long))
    cache = KVCache.empty(model.config)
    model(torch.zeros(1, 20, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="25 tokens is past max_seq_len 24"):
        model(torch.zeros(1, 5, dtype=torch.long), cache)


def test_the_parameter_formula_counts_what_is_there():
    names = ("d_model", "n_heads", "n_layers", "n_kv_heads", "d_ff", "qk_norm", "head_dim", "tie_embeddings")
    grid = itertools.product(
        (32, 96), (2, 4), (1, 3), (None, 1, 2), (None, 40), (True, False), (None, 6), (True, False)
    )
    for values in grid:
        config = small(**dict(zip(names, values, strict=True)))
        assert config.parameter_count == sum(weight.numel() for weight in Transformer(config).parameters()), config


@torch.no_grad()
@pytest.mark.parametrize(
    ("d_model", "n_layers", "vocab_size"),
    [(128, 2, 65), (384, 2, 65), (256, 4, 1024), (512, 1, 8192), (64, 2, 50_257), (256, 1, 50_257)],
)
def test_the_first_loss_is_that_of_knowing_nothing(d_model, n_layers, vocab_size):
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(vocab_size, d_model, n_heads=d_model // 32, n_layers=n_layers, max_seq_len=64)
    )
    tokens = torch.randint(vocab_size, (4, 65))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(vocab_size), rel=0.01)


@torch.no_grad()
def test_untied_the_first_loss_is_that_too():
    model = Transformer(small(tie_embeddings=False))
    assert F.cross_entropy(model(torch.zeros(1, 8, dtype=torch.long))[0], torch.arange(8)).item() == pytest.approx(
        math.log(61), rel=1e-6
    )


@torch.no_grad()
def test_a_row_of_documents_gives_each_the_logits_it_has_alone(model):
    lengths = (5, 1, 11, 7)
    tokens = torch.randint(61, (2, sum(lengths)))
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    packed = model(tokens, positions=positions)
    alone = torch.cat([model(document) for document in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_no_token_of_another_document_moves_a_logit(model):
    lengths = (9, 4, 11)
    tokens = torch.randint(61, (1, sum(lengths)))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    before = model(tokens, positions=positions)
    changed = tokens.clone()
    changed[:, 9:13] = (changed[:, 9:13] + 1) % 61
    moved = (model(changed, positions=positions) - before).abs().amax(dim=(0, 2))
    assert not moved[:9].any()
    assert not moved[13:].any()
    assert (moved[9:13] > 1e-4).all()


def test_llama_has_no_norm_on_queries_and_keys():
    names = [name for name, _ in Transformer(small(qk_norm=False)).named_parameters()]
    assert not [name for name in names if "q_norm" in name or "k_norm" in name]
    assert "layers.2.self_attn.q_norm.weight" in dict(Transformer(small()).named_parameters())


def test_nothing_has_a_bias_and_the_head_is_the_embedding():
    model = Transformer(small())
    assert not [name for name, _ in model.named_parameters() if "bias" in name or "head" in name]
    assert not model.state_dict().keys() - dict(model.named_parameters()).keys(), "tables are rebuilt, not saved"


def test_every_weight_gets_a_gradient(model):
    tokens = torch.randint(61, (2, 16))
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_dropout_is_drawn_in_training_and_never_in_evaluation():
    model = perturbed(small(dropout=0.5))
    tokens = torch.randint(61, (1, 8))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("layout", ["qwen3 grouped", "llama"])
def test_torch_export_traces_it_with_dynamic_batch_and_sequence(layout):
    model = perturbed(small(**LAYOUTS[layout], n_layers=2))
    dynamic = {"tokens": {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=24)}}
    program = torch.export.export(model, (torch.zeros(2, 5, dtype=torch.long),), dynamic_shapes=dynamic)
    for shape in ((1, 1), (3, 24), (5, 2)):
        tokens = torch.randint(61, shape)
        torch.testing.assert_close(program.module()(tokens), model(tokens), atol=1e-5, rtol=0)


class WithCache(nn.Module):
    """The plain tensors in and out that an exporter wants around a cache."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, keys, values):
        cache = KVCache(list(keys), list(values))
        return self.model(tokens, cache), cache.keys, cache.values


@pytest.mark.parametrize("layout", ["qwen3 grouped", "llama"])
def test_torch_export_traces_the_cache_with_a_dynamic_past(layout):
    model = perturbed(small(**LAYOUTS[layout], n_layers=2))
    shape = (2, model.config.kv_heads, 3, model.config.head_size)
    past = [torch.randn(shape) for _ in range(model.config.n_layers)]
    batch, seq, length = torch.export.Dim.AUTO, torch.export.Dim.AUTO, torch.export.Dim.AUTO
    program = torch.export.export(
        WithCache(model),
        (torch.zeros(2, 4, dtype=torch.long), past, [each.clone() for each in past]),
        dynamic_shapes=({0: batch, 1: seq}, [{0: batch, 2: length}] * 2, [{0: batch, 2: length}] * 2),
    )
    tokens = torch.randint(61, (3, 20))
    empty = KVCache.empty(model.config, batch_size=3)
    first, keys, values = program.module()(tokens[:, :13], empty.keys, empty.values)
    second, keys, values = program.module()(tokens[:, 13:], keys, values)
    torch.testing.assert_close(torch.cat((first, second), dim=1), model(tokens), atol=1e-5, rtol=0)
    assert keys[0].shape[2] == 20
