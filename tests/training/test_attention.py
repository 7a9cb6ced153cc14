"""The forms of attention that training swaps in compute what the model says, and only where they are faster."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from tinytf.model import Transformer, TransformerConfig
from tinytf.training import attention
from tinytf.training.attention import MATH_UP_TO, aligned_linear, choose_attention, choose_unembedding, cpu_bf16_sdpa


@pytest.mark.parametrize("autocast", [False, True])
def test_padded_logits_are_the_logits(autocast: bool) -> None:
    torch.manual_seed(0)
    found = []
    x, weight = torch.randn(5, 16, requires_grad=True), torch.randn(37, 16, requires_grad=True)
    for project in (F.linear, aligned_linear):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = project(x, weight)
        found.append((logits, *torch.autograd.grad(logits.float().square().sum(), (x, weight))))
    for plain, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, plain)
    model = Transformer(TransformerConfig(37, 16, 2, 1))
    choose_unembedding(model, CPU)
    assert model.project is F.linear
    choose_unembedding(model, torch.device("cuda"))
    assert model.project is aligned_linear


CPU = torch.device("cpu")


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_whole_scores_are_the_same_attention(kv_heads: int) -> None:
    torch.manual_seed(0)
    found = []
    tensors = [torch.randn(2, heads, 24, 8, requires_grad=True) for heads in (4, kv_heads, kv_heads)]
    for attend in (F.scaled_dot_product_attention, cpu_bf16_sdpa):
        y = attend(*tensors, is_causal=True, enable_gqa=kv_heads != 4)
        found.append((y, *torch.autograd.grad(y.square().sum(), tensors)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_long_windows_keep_the_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(attention, "sdpa_kernel", lambda backend: used.append(backend) or nullcontext())
    for length in (MATH_UP_TO, MATH_UP_TO + 1):
        q = torch.randn(1, 1, length, 2)
        cpu_bf16_sdpa(q, q, q, is_causal=True)
    assert used == [SDPBackend.MATH]


@pytest.mark.parametrize(
    ("device", "precision", "swapped"),
    [
        ("cpu", "bf16-mixed", True),
        ("cpu", "bf16-true", True),
        ("cpu", "32-true", False),
        ("cuda", "bf16-mixed", False),
    ],
)
def test_it_is_swapped_where_it_is_faster(
    device: str, precision: str, swapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "has_native_bf16", lambda device: True)
    model = Transformer(TransformerConfig(11, 16, 2, 2))
    choose_attention(model, torch.device(device), precision)
    assert all((block.self_attn.attend is cpu_bf16_sdpa) == swapped for block in model.layers)


def test_a_cpu_that_only_emulates_bf16_keeps_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "has_native_bf16", lambda device: False)
    model = Transformer(TransformerConfig(11, 16, 2, 2))
    choose_attention(model, CPU, "bf16-mixed")
    assert all(block.self_attn.attend is F.scaled_dot_product_attention for block in model.layers)
