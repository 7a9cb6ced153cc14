"""What each of two processes does in test_sharding."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tinytf.training.distributed.dtensor import clip_by_norm, distribute_like, full_tensor, total_norm
from tinytf.training.optim.muon import MuonAdamW

SHAPES = [(7, 6), (6, 7), (7, 6), (7, 6), (5, 5)]
"""Rows that two processes cannot share evenly, three matrices of one shape and one alone."""


class Matrices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.ParameterList(torch.randn(shape) for shape in SHAPES)
        self.norm = nn.Parameter(torch.randn(6))

    def forward(self) -> None:
        """fully_shard wants one."""


def groups(model: Matrices) -> list[dict[str, object]]:
    return [{"name": "matrices", "params": list(model.hidden)}, {"name": "norm", "params": [model.norm]}]


def compare(rank: int, world: int, store: str) -> None:
    """Three steps of the sharded model and of a whole one, with the same gradients, clipped; then their weights."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = Matrices()
    reference = copy.deepcopy(model)
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    optimizers = [MuonAdamW(groups(m), lr=0.1, muon_lr=0.1, weight_decay=0.1) for m in (model, reference)]
    for _ in range(3):
        gradients = [torch.randn_like(p) for p in reference.parameters()]
        for mine, theirs, gradient in zip(model.parameters(), reference.parameters(), gradients, strict=True):
            mine.grad, theirs.grad = distribute_like(gradient.clone(), mine), gradient.clone()
        norm = total_norm([p.grad for p in model.parameters() if p.grad is not None])
        torch.testing.assert_close(norm, torch.cat([g.flatten() for g in gradients]).norm())
        clip_by_norm([p.grad for p in model.parameters() if p.grad is not None], 1.0, norm)
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert mine.to_local().shape != theirs.shape, "it is not sharded"
        torch.testing.assert_close(full_tensor(mine.detach()), theirs.detach(), atol=0.01, rtol=0.01)
    dist.destroy_process_group()
