"""MuonAdamW against the optimizers of torch that it stands for."""

import copy

import pytest
import torch
from torch import nn

from tinytf.model import Transformer, TransformerConfig
from tinytf.training import MuonAdamW
from tinytf.training.optim.groups import parameter_groups
from tinytf.training.optim.muon import orthogonalize

SHAPES = [(16, 16), (16, 16), (48, 16), (16, 48)]


def matrices(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def descend(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 5) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer.step()


def test_hidden_matrices_take_torchs_muon_step() -> None:
    ours, theirs = matrices(), matrices()
    descend(MuonAdamW([{"name": "matrices", "params": ours}], muon_lr=0.02, weight_decay=0.1, per_neuron=False), ours)
    descend(torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1), theirs)
    for a, b in zip(ours, theirs, strict=True):
        # torch iterates in bfloat16, which has three digits.
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.005)


def test_each_neuron_takes_steps_of_its_own_size() -> None:
    """A neuron whose gradients are a hundred times the others' moves as far as they do, and so does the matrix."""
    moved = {}
    for per_neuron in (False, True):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(8, 32))
        optimizer = MuonAdamW([{"name": "matrices", "params": [weight]}], muon_lr=0.02, per_neuron=per_neuron)
        torch.manual_seed(1)
        for _ in range(30):
            before = weight.detach().clone()
            # Rows that point the same way share one singular value, and with it one step.
            weight.grad = torch.randn(8, 32) + 3 * torch.ones(8, 1) @ torch.randn(1, 32)
            weight.grad[0] *= 100
            optimizer.step()
        moved[per_neuron] = (weight.detach() - before).norm(dim=1)
    spread = {key: (rows.max() / rows.min()).item() for key, rows in moved.items()}
    assert spread[True] < 1.25 < 1.5 < spread[False]
    torch.testing.assert_close(moved[True].norm(), moved[False].norm(), rtol=0.1, atol=0.0)


def test_a_zero_gradient_moves_nothing() -> None:
    weight = nn.Parameter(torch.randn(8, 8))
    before = weight.detach().clone()
    weight.grad = torch.zeros(8, 8)
    MuonAdamW([{"name": "matrices", "params": [weight]}]).step()
    assert torch.equal(weight, before)


def test_other_parameters_take_torchs_adamw_step() -> None:
    ours, theirs = matrices(), matrices()
    settings = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    groups = [{"name": "matrices", "params": []}, {"name": "norm", "params": ours}]
    descend(MuonAdamW(groups, lr=3e-3, **settings), ours)
    descend(torch.optim.AdamW(theirs, lr=3e-3, **settings), theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 24, 8), (2, 8, 24)])
def test_orthogonalize_brings_every_singular_value_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), steps=5))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_matrix_does_not_depend_on_its_companions() -> None:
    torch.manual_seed(0)
    batch = torch.randn(4, 8, 8)
    batch[1:] *= 1000
    torch.testing.assert_close(orthogonalize(batch, 5)[:1], orthogonalize(batch[:1], 5))


def test_state_survives_a_round_trip() -> None:
    ours, theirs = matrices(), matrices()
    first = MuonAdamW([{"name": "matrices", "params": ours[:2]}, {"name": "norm", "params": ours[2:]}])
    second = MuonAdamW([{"name": "matrices", "params": theirs[:2]}, {"name": "norm", "params": theirs[2:]}])
    descend(first, ours)
    with torch.no_grad():
        for a, b in zip(theirs, ours, strict=True):
            a.copy_(b)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    descend(first, ours)
    descend(second, theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_parameter_without_gradient_is_left_alone() -> None:
    parameters = matrices()
    before = [p.clone() for p in parameters]
    optimizer = MuonAdamW([{"name": "matrices", "params": parameters[:2]}, {"name": "norm", "params": parameters[2:]}])
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_each_parameter_is_in_one_group_and_only_matrices_decay() -> None:
    model = Transformer(TransformerConfig(11, 16, 2, 2))
    groups = {group["name"]: group for group in parameter_groups(model)}
    members = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim == 2 for p in groups["matrices"]["params"])
    assert "weight_decay" not in groups["matrices"]
    assert groups["embedding"]["weight_decay"] == groups["norm"]["weight_decay"] == 0.0
    assert all("weight_decay" not in group for group in parameter_groups(model, decay_all=True))


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"lr": -1.0}, "lr"), ({"momentum": 1.0}, "momentum"), ({"betas": (0.9, 2.0)}, "betas")],
)
def test_wrong_numbers_are_named(settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        MuonAdamW([{"name": "matrices", "params": matrices()}], **settings)  # type: ignore[arg-type]


def test_without_a_group_of_matrices_it_is_refused() -> None:
    """Otherwise AdamW alone would train, under Muon's name."""
    for params in (matrices(), [{"name": "norm", "params": matrices()}]):
        with pytest.raises(ValueError, match='named "matrices"'):
            MuonAdamW(params)  # type: ignore[arg-type]


def test_a_matrix_without_a_gradient_yet_stays_finite_in_every_type() -> None:
    """As q, k and v have none in the first step: zeros over a root mean square of zero."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = nn.Parameter(torch.ones(8, 8, dtype=dtype))
        weight.grad = torch.zeros_like(weight)
        optimizer = MuonAdamW([{"name": "matrices", "params": [weight]}])
        optimizer.step()
        assert torch.equal(weight, torch.ones_like(weight))
        assert optimizer.state[weight]["neuron_sq"].dtype is dtype


def test_a_vector_is_not_orthogonalized() -> None:
    with pytest.raises(ValueError, match="matrices"):
        MuonAdamW([{"name": "matrices", "params": [nn.Parameter(torch.zeros(3))]}])
