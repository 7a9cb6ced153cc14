"""Adapters: what is trained, how checkpoints name it, and what merging it gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tinytf.errors import UserError
from tinytf.model import Transformer, TransformerConfig
from tinytf.training.optim.groups import parameter_groups
from tinytf.weights.adapter import TARGETS, AdapterConfig, adapter_shapes, attach_adapter, merge_adapter

SIZES = TransformerConfig(vocab_size=50, d_model=32, n_heads=2, n_kv_heads=1, n_layers=2, max_seq_len=16)


def random_model() -> Transformer:
    """No matrix is zero, as at the start some are."""
    torch.manual_seed(0)
    model = Transformer(SIZES)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def random_adapter(model: Transformer, config: AdapterConfig) -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in adapter_shapes(model, config).items()}


def test_only_the_adapter_is_trained_and_saved_under_plain_names() -> None:
    config = AdapterConfig(rank=3, targets=["v_proj", "down_proj"])
    model = random_model()
    shapes, before = adapter_shapes(model, config), copy.deepcopy(model.state_dict())
    attach_adapter(model, config)
    grouped = {group["name"]: group["params"] for group in parameter_groups(model)}
    assert [len(grouped[name]) for name in ("matrices", "embedding", "norm")] == [2 * 2 * 2, 0, 0]
    state = model.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == shapes
    assert "layers.1.self_attn.v_proj.lora_A.weight" in state
    weights = {name: torch.randn_like(value) for name, value in state.items()}
    model.load_state_dict(weights)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    copied = copy.deepcopy(model)
    assert copied.state_dict().keys() == state.keys()
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({name: value for name, value in weights.items() if "lora_A" in name})
    base = {name.replace("base_layer.", ""): value for name, value in model.named_parameters() if "lora" not in name}
    assert all(torch.equal(value, before[name]) for name, value in base.items())


def test_the_merged_model_is_that_of_peft() -> None:
    config = AdapterConfig(rank=4, alpha=6.0)
    merged, unmerged = random_model(), random_model()
    weights = random_adapter(merged, config)
    tokens = torch.randint(SIZES.vocab_size, (2, 16))
    before = unmerged(tokens)
    attach_adapter(unmerged, config)
    torch.testing.assert_close(unmerged(tokens), before)  # B is zero.
    unmerged.load_state_dict(weights)
    merge_adapter(merged, config, weights)
    torch.testing.assert_close(merged(tokens), unmerged(tokens), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged(tokens), before, atol=0.1)
    for module in unmerged.modules():
        if hasattr(module, "merge"):
            module.merge()
    theirs: dict[str, Any] = dict(unmerged.named_parameters())
    for name, ours in merged.named_parameters():
        matrix = name.split(".")[-2] in TARGETS
        assert torch.equal(ours, theirs[name.replace(".weight", ".base_layer.weight") if matrix else name]), name


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rank": 0}, "rank is 0, but must be at least 1"),
        ({"rank": True}, "rank is True, but must be a number"),
        ({"alpha": "much"}, "alpha is 'much'"),
        ({"alpha": float("inf")}, "alpha is inf, but must be above 0 and finite"),
        ({"alpha": 10**400}, "alpha is 1000"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": ["lm_head"]}, "targets is .*must be some of q_proj"),
        ({"targets": []}, "targets is"),
        ({"ranks": 1}, "ranks"),
    ],
)
def test_numbers_that_make_no_adapter_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        AdapterConfig.from_mapping(values)
