"""What an optimizer step needs of tensors sharded over processes (DTensor), and of plain ones alike.

FSDP2 shards each tensor by rows over one mesh dimension. A DTensor's local shard is a plain tensor on its storage:
what treats each element by itself works there, without communication. What needs a whole matrix, or a sum over all
elements, is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor


def local_shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's shard of each, on the same storage; all of a plain one."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def full_tensor(tensor: Tensor) -> Tensor:
    """All of it, on every process; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(value: Tensor, like: Tensor) -> Tensor:
    """A full tensor that every process has, sharded as another is; without communication."""
    if not isinstance(like, DTensor) or value.ndim != like.ndim:  # A step count belongs to no shard.
        return value
    # src_data_rank=None: each process cuts its shard from its own copy, in place of a scatter from the first.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def sum_over_shards(values: Tensor, like: Tensor) -> Tensor:
    """The sum of every process's ``values``, which are sums over its shard of tensors sharded as ``like`` is."""
    if not isinstance(like, DTensor):
        return values
    return DTensor.from_local(values, like.device_mesh, [Partial()], run_check=False).full_tensor()


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together over all processes, a scalar."""
    return full_tensor(torch.nn.utils.get_total_norm(gradients))


def clip_by_norm(gradients: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale gradients of this norm down in place to at most ``max_norm``, as torch's ``clip_grads_with_norm_``."""
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(local_shards(gradients), factor)


def map_full_matrices(shards: Tensor, like: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of full matrices to matrices of which each process holds a shard.

    The processes exchange shards so that each gets every world-th matrix in full, works on those alone, and gives the
    shards back: the work is divided, not repeated.

    Args:
        shards: ``[n, rows, columns]``, this process's rows of n matrices that are all sharded as ``like`` is.
        like: one of the parameters; if it is a plain tensor, ``shards`` are the matrices.
        function: from ``[m, rows, columns]`` full matrices to as many of the same shape, each by itself.

    Returns:
        This process's shards of the results, of the shape of ``shards``.
    """
    if not isinstance(like, DTensor):
        return function(shards)
    mesh, shape = like.device_mesh, torch.Size((len(shards), *like.shape))
    stride = (shape[1] * shape[2], shape[2], 1)
    # Rows are dimension 1 of the stack of matrices; sharded by dimension 0, a process has whole matrices.
    stack = DTensor.from_local(shards.contiguous(), mesh, [Shard(1)], run_check=False, shape=shape, stride=stride)
    mine = stack.redistribute(placements=[Shard(0)]).to_local()
    done = function(mine) if len(mine) else mine
    result = DTensor.from_local(done.contiguous(), mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
    return result.redistribute(placements=[Shard(1)]).to_local()
