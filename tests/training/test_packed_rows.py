"""Rows of several documents: each is as if alone, and every target weighs the same in a step, wherever it lies."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from tinytf.data.windows import IGNORE_INDEX
from tinytf.model import Transformer, TransformerConfig
from tinytf.training.attention import choose_attention
from tinytf.training.lightning_module import LanguageModel
from tinytf.training.loss import mean_loss, token_losses

SEQ = 24
CONFIG = {"vocab_size": 31, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": SEQ}


def model() -> Transformer:
    torch.manual_seed(0)
    made = Transformer(TransformerConfig(**CONFIG))
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return made


def packed(lengths: list[int], seed: int = 0, trained: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """One row [1, SEQ] of documents of these lengths, and padding; of each document's targets, the last ones count."""
    rng = random.Random(seed)
    tokens, targets, positions = (torch.zeros(1, SEQ, dtype=torch.int64) for _ in range(3))
    targets[:] = IGNORE_INDEX
    at = 0
    for length in lengths:
        tokens[0, at : at + length] = torch.tensor([rng.randrange(31) for _ in range(length)])
        first = at + int(length * (1 - trained))
        targets[0, first : at + length] = torch.tensor([rng.randrange(31) for _ in range(at + length - first)])
        positions[0, at : at + length] = torch.arange(length)
        at += length
    return tokens, targets, positions


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 8), min_size=2, max_size=3), st.data())
def test_no_logit_moves_when_another_document_changes(lengths: list[int], data: st.DataObject) -> None:
    network = model().eval()
    tokens, _, positions = packed(lengths)
    changed = data.draw(st.integers(0, len(lengths) - 1))
    start = sum(lengths[:changed])
    other = tokens.clone()
    other[0, start : start + lengths[changed]] = (tokens[0, start : start + lengths[changed]] + 7) % 31
    with torch.inference_mode():
        before, after = (network(row, positions=positions) for row in (tokens, other))
    rest = torch.ones(SEQ, dtype=torch.bool)
    rest[start : start + lengths[changed]] = False
    assert torch.equal(before[0, rest], after[0, rest])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_packed_batch_has_the_loss_of_the_unpacked_one(precision: str) -> None:
    network = model()
    choose_attention(network, torch.device("cpu"), precision)
    lengths = [5, 11, 1, 4]
    tokens, targets, positions = packed(lengths, trained=1.0)
    cuts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
        together = mean_loss(network, tokens, targets, positions)
        alone = [token_losses(network, tokens[:, a:b], targets[:, a:b]).sum() for a, b in itertools.pairwise(cuts)]
    torch.testing.assert_close(
        together, sum(alone) / sum(lengths), atol=1e-5 if precision == "32-true" else 2e-2, rtol=0
    )


def trained(rows: list[tuple[Tensor, ...]], batch: int, folder: Path) -> tuple[Tensor, float]:
    """Weights after one step of SGD over all rows, in micro-batches of ``batch``, and the loss that it logged."""
    torch.manual_seed(0)
    module = LanguageModel(lambda groups: torch.optim.SGD(groups, lr=0.5), **CONFIG)
    logger = CSVLogger(folder)
    batches = [tuple(map(torch.cat, zip(*rows[i : i + batch], strict=True))) for i in range(0, len(rows), batch)]
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=logger, log_every_n_steps=1, enable_checkpointing=False,
                      accumulate_grad_batches=len(batches), gradient_clip_val=0.7, enable_model_summary=False,
                      enable_progress_bar=False)  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    weights = torch.cat([weight.detach().flatten() for weight in module.parameters()])
    return weights, float(trainer.callback_metrics["train/loss"])


@pytest.mark.filterwarnings("ignore")
def test_every_target_weighs_the_same_in_whichever_micro_batch(tmp_path: Path) -> None:
    # One target in one row, 24 in another: the mean of micro-batch means would count the one as much as the 24.
    rows = [packed([20], 1, 0.05), packed([24], 2, 1.0), packed([10, 9], 3), packed([2, 3, 2], 4)]
    whole, loss = trained(rows, 4, tmp_path)
    accumulated, same_loss = trained(rows, 1, tmp_path)
    torch.testing.assert_close(accumulated, whole, atol=1e-6, rtol=1e-5)
    assert same_loss == pytest.approx(loss, rel=1e-6)
