"""The account of memory, against what torch's allocator says of a real step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.benchmarks.memory import JOBS, peak
from tinytf.model import Transformer, TransformerConfig
from tinytf.training import MuonAdamW
from tinytf.training.memory_estimate import Job, activation_bytes, largest_batch, memory, optimizer_needs, weight_casts

SMALL = JOBS["0.9M, char"]
SHAPES = {
    "plain": TransformerConfig(70, 64, 2, 2, max_seq_len=64),
    "grouped heads": TransformerConfig(70, 64, 4, 3, n_kv_heads=2, max_seq_len=64),
    "no QK-norm": TransformerConfig(70, 64, 4, 3, max_seq_len=64, qk_norm=False),
    "wide feed-forward": TransformerConfig(70, 64, 2, 2, d_ff=512, max_seq_len=64),
}


def kept(shape: TransformerConfig, mixed: bool) -> int:
    """Bytes of what a forward pass keeps for the backward pass, each piece of storage once, weights aside."""
    model = Transformer(shape)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
        nn.functional.linear(model.hidden(torch.zeros(2, 64, dtype=torch.long)), model.embed_tokens.weight)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_what_autograd_keeps(name: str, precision: str) -> None:
    shape = SHAPES[name]
    real = kept(shape, precision == "bf16-mixed")
    counted = 2 * 64 * activation_bytes(shape, precision) + weight_casts(shape, precision)
    assert counted == pytest.approx(real, rel=0.02 if precision == "32-true" else 0.15)


def test_the_peak_is_what_the_allocator_held() -> None:
    assert memory(SMALL).peak == pytest.approx(peak(SMALL), rel=0.15)


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    for limit in (20e6, 100e6, 1e9):
        batch = largest_batch(SMALL, limit)
        assert memory(replace(SMALL, batch=batch)).peak <= limit < memory(replace(SMALL, batch=batch + 1)).peak
    assert largest_batch(SMALL, 1e6) == 0


def test_shards_take_a_share_and_ddp_takes_buckets() -> None:
    one = memory(SMALL)
    ddp = memory(replace(SMALL, strategy="ddp", devices=8))
    fsdp = memory(replace(SMALL, strategy="fsdp", devices=8))
    assert (ddp.weights, ddp.optimizer, ddp.gradients) == (one.weights, one.optimizer, 2 * one.gradients)
    assert (8 * fsdp.weights, 8 * fsdp.optimizer, 8 * fsdp.gradients) == (one.weights, one.optimizer, one.gradients)
    assert fsdp.activations == one.activations


def test_an_optimizers_state_is_asked_of_itself() -> None:
    assert optimizer_needs(MuonAdamW) == ((1.0, 2.0), True)
    assert optimizer_needs(torch.optim.AdamW) == ((2.0, 2.0), False)
    assert optimizer_needs(lambda groups: torch.optim.SGD(groups, lr=0.1)) == ((0.0, 0.0), False)


def test_checkpointing_keeps_an_input_a_block_and_one_block() -> None:
    job = replace(SMALL, batch=64)
    whole, little = memory(job).activations, memory(replace(job, checkpointing=True)).activations
    assert little == pytest.approx(whole / 4 + 64 * 128 * 4 * 128 * 4)


def test_more_micro_batches_keep_gradients_alive() -> None:
    job = Job(SMALL.config, 64, 128)
    assert memory(replace(job, accumulates=True)).peak == memory(job).peak + memory(job).gradients
