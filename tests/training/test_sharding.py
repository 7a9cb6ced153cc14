"""A step on shards is the step on whole tensors: Muon, AdamW, the norm and the clipping."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.multiprocessing as mp

from tests.training.sharded_work import compare
from tinytf.training.distributed.dtensor import clip_by_norm, map_full_matrices, total_norm


def test_two_processes_step_as_one(tmp_path: Path) -> None:
    mp.spawn(compare, (2, str(tmp_path / "store")), nprocs=2)


def test_plain_tensors_are_clipped_as_torch_clips_them() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(4, 3)), torch.nn.Parameter(torch.zeros(5))]
    for largest in (0.5, 1e6):
        for p in parameters:
            p.grad = torch.randn(p.shape)
        mine = [p.grad.clone() for p in parameters if p.grad is not None]
        clip_by_norm(mine, largest, total_norm(mine))
        torch.nn.utils.clip_grad_norm_(parameters, largest)
        assert all(torch.equal(a, p.grad) for a, p in zip(mine, parameters, strict=True) if p.grad is not None)


def test_plain_matrices_are_handed_on_as_they_are() -> None:
    stack = torch.randn(3, 4, 5)
    assert torch.equal(map_full_matrices(stack, torch.zeros(4, 5), lambda m: 2 * m), 2 * stack)
