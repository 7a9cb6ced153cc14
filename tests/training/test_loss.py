"""The chunked loss is the loss."""

import pytest
import torch
import torch.nn.functional as F

from tinytf.data.windows import IGNORE_INDEX
from tinytf.model import Transformer, TransformerConfig
from tinytf.training import loss


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(37, 16, 2, 1, max_seq_len=32))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def test_chunks_change_neither_loss_nor_gradient(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, targets = torch.randint(37, (2, 3, 32))
    gradients = []
    for at_once in (10**9, 37 * 7):
        monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", at_once)
        model.zero_grad()
        losses = loss.token_losses(model, tokens, targets)
        losses.mean().backward()
        gradients.append([losses, *(p.grad for p in model.parameters())])
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, chunked)


def test_it_is_cross_entropy_and_padding_costs_nothing(model: Transformer) -> None:
    tokens, targets = torch.randint(37, (2, 3, 32))
    targets[:, 20:] = IGNORE_INDEX
    losses = loss.token_losses(model, tokens, targets)
    expected = F.cross_entropy(model(tokens[:, :20]).flatten(0, 1), targets[:, :20].flatten())
    torch.testing.assert_close(losses.sum() / (3 * 20), expected)
    assert losses[:, 20:].abs().max() == 0


def test_padding_is_not_in_the_mean(model: Transformer) -> None:
    tokens, targets = torch.randint(37, (2, 3, 32))
    targets[:, 20:] = IGNORE_INDEX
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(loss.mean_loss(model, tokens, targets), expected)
    assert loss.mean_loss(model, tokens, torch.full_like(targets, IGNORE_INDEX)) == 0
