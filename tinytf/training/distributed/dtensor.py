"""What an optimizer step needs of tensors that are spread over processes (DTensor), and of plain ones alike.

A DTensor's local part is a plain tensor on its storage: what is done to each element by itself is done there, without
a word between the processes. What needs a whole matrix, or a sum over all elements, is here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

Layout = tuple[Placement, ...]
"""How a tensor lies over each dimension of its mesh; empty for a plain one."""


def layout(tensor: Tensor) -> Layout:
    """How a tensor lies over its mesh."""
    return tuple(tensor.placements) if isinstance(tensor, DTensor) else ()


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The part of each that this process holds, on the same storage; all of a plain one."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every process; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, laid out as another is; no word between the processes.

    Where a dimension has not the other's size (a column of one number a row) each process keeps all of it.
    """
    if not isinstance(like, DTensor) or value.ndim != like.ndim:
        return value
    mesh = like.device_mesh
    lie = [
        p if _dim(p) is None or value.shape[_dim(p)] == like.shape[_dim(p)] else Replicate() for p in like.placements
    ]
    copies = DTensor.from_local(value.to(like.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    with torch.no_grad():
        return copies.redistribute(placements=lie)


def sum_over_parts(values: Tensor, like: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Add up what processes that hold different parts of tensors laid out as ``like``, along these dimensions, have."""
    if not isinstance(like, DTensor):
        return values
    mesh = like.device_mesh
    lie: list[Placement] = [Partial() if _dim(p) in dims else Replicate() for p in like.placements]
    summed = DTensor.from_local(values, mesh, lie, run_check=False)
    return summed.redistribute(placements=[Replicate()] * mesh.ndim).to_local()


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together over all processes, a scalar."""
    by_mesh: dict[object, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        by_mesh[gradient.device_mesh if isinstance(gradient, DTensor) else None].append(gradient)
    norms = [whole(torch.nn.utils.get_total_norm(same)) for same in by_mesh.values()]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def scale_to(gradients: Sequence[Tensor], largest: float, norm: Tensor) -> None:
    """Scale the gradients down in place so that their norm is at most ``largest``, as torch's clip_grads_with_norm_."""
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(local(gradients), factor)


def on_whole_matrices(parts: Tensor, like: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of whole matrices to matrices of which each process holds a part.

    Where parts are of one mesh dimension, the processes exchange them so that each gets every world-th share of the
    matrices whole, works on those alone, and gives the parts back: the work is shared out, not repeated.

    Args:
        parts: ``[n, rows, columns]``, this process's part of n matrices that all lie as ``like`` does.
        like: one of the parameters; where it is a plain tensor, ``parts`` are the matrices.
        function: from ``[m, rows, columns]`` whole matrices to as many of the same shape, each by itself.

    Returns:
        This process's part of the results, of the shape of ``parts``.
    """
    if not isinstance(like, DTensor):
        return function(parts)
    mesh, lie = like.device_mesh, [_stacked(placement) for placement in like.placements]
    shape = torch.Size((len(parts), *like.shape))
    strides = (shape[1] * shape[2], shape[2], 1)
    stack = DTensor.from_local(parts.contiguous(), mesh, lie, run_check=False, shape=shape, stride=strides)
    # The first dimension of the mesh shares the matrices out; a second one, of tensor parallelism, repeats the work.
    shared: list[Placement] = [Shard(0), *[Replicate()] * (mesh.ndim - 1)]
    mine = stack.redistribute(placements=shared).to_local()
    done = function(mine) if len(mine) else mine
    result = DTensor.from_local(done.contiguous(), mesh, shared, run_check=False, shape=shape, stride=strides)
    return result.redistribute(placements=lie).to_local()


def _dim(placement: Placement) -> Any:
    """The dimension along which a mesh dimension splits a tensor, None where it does not."""
    return getattr(placement, "dim", None)


def _stacked(placement: Placement) -> Placement:
    """The placement of a stack whose matrices lie so: dimension d of each is d + 1 of the stack."""
    if _dim(placement) is None:
        return placement
    # FSDP over tensor parallelism on one dimension interleaves: torch's _StridedShard.
    split = getattr(placement, "split_factor", None)
    if split is not None:
        return type(placement)(_dim(placement) + 1, split_factor=split)  # type: ignore[call-arg]
    return Shard(_dim(placement) + 1)
