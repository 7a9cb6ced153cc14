"""The estimate of memory, against what torch's allocator counts in a real step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.benchmarks.memory import STEPS, measure_peak
from tinytf.model import Transformer, TransformerConfig
from tinytf.training import MuonAdamW
from tinytf.training.memory_estimate import (
    StepSpec,
    Strategy,
    block_tensors,
    estimate,
    largest_batch,
    optimizer_state,
    trained_in,
)
from tinytf.training.optim.groups import freeze
from tinytf.weights.adapter import AdapterConfig

SMALL = STEPS["0.9M, char"]
CONFIGS = {
    "plain": TransformerConfig(70, 64, 2, 2, max_seq_len=64),
    "grouped heads": TransformerConfig(70, 64, 4, 3, n_kv_heads=2, max_seq_len=64),
    "no QK-norm": TransformerConfig(70, 64, 4, 3, max_seq_len=64, qk_norm=False),
    "dropout": TransformerConfig(70, 64, 2, 2, max_seq_len=64, dropout=0.1),
    "wide feed-forward": TransformerConfig(70, 64, 2, 2, d_ff=512, max_seq_len=64),
}


def measure_saved_bytes(config: TransformerConfig, mixed: bool) -> int:
    """Bytes that a forward pass saves for the backward pass, each piece of storage once, without the weights."""
    model = Transformer(config)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
        nn.functional.linear(model.hidden(torch.zeros(2, 64, dtype=torch.long)), model.embed_tokens.weight)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", CONFIGS)
def test_activations_are_what_autograd_saves(name: str, precision: str) -> None:
    config = CONFIGS[name]
    measured = measure_saved_bytes(config, precision == "bf16-mixed")
    estimated = estimate(StepSpec(config, 2, 64, precision)).activations
    assert estimated == pytest.approx(measured, rel=0.01)


def test_the_peak_is_what_the_allocator_counts() -> None:
    assert estimate(SMALL).peak == pytest.approx(measure_peak(SMALL), rel=0.15)


PINNED = (
    # What nothing measures here, DDP's buckets and FSDP's gathered weights, worked out by hand once: activations,
    # workspace, peak, and when it is.
    ("0.9M, char", "32-true", "one device", False, 58327040, 5767168, 66130432, "backward begins"),
    ("0.9M, char", "bf16-mixed", "ddp", True, 12845056, 5767168, 24098816, "backward begins"),
    ("13M, bpe", "32-true", "fsdp2", False, 443416576, 5373952, 669136768, "backward begins"),
    ("13M, bpe", "bf16-mixed", "ddp", False, 329383936, 42991616, 641421312, "backward begins"),
    ("51M, bpe, medium.yaml's", "32-true", "fsdp2", True, 45404160, 44040192, 205161472, "backward ends"),
    ("51M, bpe, medium.yaml's", "bf16-mixed", "ddp", False, 368164864, 352321536, 1241800704, "optimizer step"),
    ("plain", "32-true", "ddp", True, 1003520, 720896, 2523392, "optimizer step"),
    ("plain", "bf16-mixed", "fsdp2", True, 839680, 90112, 1506784, "backward begins"),
    ("grouped heads", "32-true", "ddp", False, 2574336, 1081344, 4531712, "backward begins"),
    ("grouped heads", "bf16-mixed", "fsdp2", False, 2115584, 135168, 2790768, "backward begins"),
    ("no QK-norm", "32-true", "one device", True, 855040, 1081344, 3077120, "optimizer step"),
    ("no QK-norm", "bf16-mixed", "fsdp2", False, 1836032, 135168, 2555872, "backward begins"),
    ("wide feed-forward", "32-true", "fsdp2", True, 1658880, 212992, 3075712, "backward ends"),
    ("wide feed-forward", "bf16-mixed", "one device", False, 2449408, 1703936, 4535296, "optimizer step"),
)


@pytest.mark.parametrize(
    ("name", "precision", "strategy", "checkpointing", "activations", "workspace", "peak", "peak_phase"), PINNED
)
def test_totals_of_known_steps(
    name: str,
    precision: str,
    strategy: Strategy,
    checkpointing: bool,
    activations: int,
    workspace: int,
    peak: int,
    peak_phase: str,
) -> None:
    step = STEPS[name] if name in STEPS else StepSpec(CONFIGS[name], 2, 64)
    devices = 1 if strategy == "one device" else 8
    found = estimate(
        replace(step, precision=precision, strategy=strategy, devices=devices, checkpointing=checkpointing)
    )
    assert (found.activations, found.workspace, found.peak) == pytest.approx((activations, workspace, peak), rel=1e-12)
    assert found.peak_phase == peak_phase


def test_dropout_keeps_masks() -> None:
    masked = replace(CONFIGS["plain"], dropout=0.1)
    added = set(block_tensors(masked, "32-true")) - set(block_tensors(CONFIGS["plain"], "32-true"))
    assert added == {("attention: dropout_mask", 64, 4, "dropout"), ("mlp: dropout_mask", 64, 4, "dropout")}


def test_rows_add_up_to_the_parts_and_the_peak() -> None:
    for step in (replace(SMALL, strategy="ddp", devices=8), replace(SMALL, strategy="fsdp2", devices=8)):
        found = estimate(step)
        parts = (found.weights, found.gradients, found.optimizer, found.gathered, found.activations, found.logits)
        assert sum(row.bytes for row in found.rows if row.part != "passing") == sum(parts) + found.workspace
        assert found.peak == sum(row.bytes * row.alive.get(found.peak_phase, 0) for row in found.rows)


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    for limit in (20e6, 100e6, 1e9):
        batch = largest_batch(SMALL, limit)
        assert estimate(replace(SMALL, batch=batch)).peak <= limit < estimate(replace(SMALL, batch=batch + 1)).peak
    assert largest_batch(SMALL, 1e6) == 0


def test_shards_take_a_share_and_ddp_takes_buckets() -> None:
    one = estimate(SMALL)
    ddp = estimate(replace(SMALL, strategy="ddp", devices=8))
    fsdp = estimate(replace(SMALL, strategy="fsdp2", devices=8))
    assert (ddp.weights, ddp.optimizer, ddp.gradients) == (one.weights, one.optimizer, 2 * one.gradients)
    assert (8 * fsdp.weights, 8 * fsdp.optimizer, 8 * fsdp.gradients) == (one.weights, one.optimizer, one.gradients)
    assert fsdp.activations == one.activations


def test_an_optimizers_state_is_counted() -> None:
    assert optimizer_state(MuonAdamW) == ((1.0, 2.0), True)
    assert optimizer_state(torch.optim.AdamW) == ((2.0, 2.0), False)
    assert optimizer_state(lambda groups: torch.optim.SGD(groups, lr=0.1)) == ((0.0, 0.0), False)


def test_checkpointing_keeps_an_input_per_block_and_one_block() -> None:
    step = replace(SMALL, batch=64)
    whole, little = estimate(step).activations, estimate(replace(step, checkpointing=True)).activations
    assert little == pytest.approx(whole / 4 + 64 * 128 * 4 * 128 * 4)


def test_more_micro_batches_keep_gradients_alive() -> None:
    step = StepSpec(SMALL.config, 64, 128)
    assert estimate(replace(step, accumulates=True)).peak == estimate(step).peak + estimate(step).gradients


def test_what_is_not_trained_has_no_gradient_and_no_state() -> None:
    spec = replace(SMALL, freeze=("embed_tokens.*", "layers.[012].*"))
    model = Transformer(spec.config)
    freeze(model, spec.freeze)
    assert trained_in(spec).entries == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimate(spec).gradients == 4 * trained_in(spec).entries
    assert estimate(spec).peak == pytest.approx(measure_peak(spec), rel=0.15)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_adapter_is_all_that_has_gradients_and_state(dropout: float) -> None:
    spec = replace(SMALL, adapter=AdapterConfig(rank=8, dropout=dropout))
    assert estimate(spec).gradients == 4 * trained_in(spec).entries
    assert estimate(spec).weights == 4 * (spec.config.parameter_count + trained_in(spec).entries)
    assert estimate(spec).peak == pytest.approx(measure_peak(spec), rel=0.15)
