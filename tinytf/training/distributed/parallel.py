"""How the model is spread over processes: fully sharded data parallelism, and tensor parallelism inside a block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from tinytf.errors import UserError
from tinytf.model import Transformer, TransformerConfig

HEADS = 1
"""The dimension of the heads in attention's ``[batch, heads, seq, head_dim]``."""


def parallelize(model: Transformer, mesh: DeviceMesh) -> None:
    """Spread a model in place; its module names, and so its checkpoint's keys, stay what they were.

    Each block is sharded by itself (FSDP2; Zhao et al. 2023, arXiv:2304.11277): its weights are gathered when it is
    about to run and freed when it has. The embedding and the last norm belong to the root, and stay gathered from the
    start of `hidden` to the end of the backward pass, because the loss uses the embedding's weights again.

    Args:
        model: on any device; every process has the same weights.
        mesh: of the dimensions ``data_parallel`` and ``tensor_parallel``.

    Raises:
        UserError: where the model's heads or widths do not divide by the tensor-parallel size.
    """
    if mesh["tensor_parallel"].size() > 1:
        split_blocks(model, mesh["tensor_parallel"])
    for block in model.layers:
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"], reshard_after_forward=False)
    # The loss calls `hidden` and then `unembed`; nothing calls the root's forward.
    register_fsdp_forward_method(model, "hidden")


def split_blocks(model: Transformer, mesh: DeviceMesh) -> None:
    """Split every block's matrices by heads and by features (Shoeybi et al. 2019, arXiv:1909.08053).

    What lies between the matrices is whole in every process: the residual stream, the norms, the embedding.
    """
    refuse_uneven(model.config, mesh.size())
    for block in model.layers:
        parallelize_module(block, mesh, _plan(model.config))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            repeat(block.get_submodule(norm), mesh)
    repeat(model.norm, mesh)


def refuse_uneven(config: TransformerConfig, size: int) -> None:
    """Refuse heads or features that do not divide by the tensor-parallel size."""
    for name, value in (("n_heads", config.n_heads), ("n_kv_heads", config.kv_heads), ("d_ff", config.ff_dim)):
        if value % size:
            raise UserError(
                f"model.{name} {value} does not divide by trainer.strategy.tensor_parallel_size {size}: each process "
                "holds as many of them"
            )


def _plan(config: TransformerConfig) -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {
        "self_attn.o_proj": RowwiseParallel(),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    plan |= {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
    if config.qk_norm:
        # Their weights are every head's, so a process's gradient of them is a part of the sum.
        plan |= {f"self_attn.{name}_norm": SequenceParallel(sequence_dim=HEADS, use_local_output=True) for name in "qk"}
    return plan


def repeat(module: nn.Module, mesh: DeviceMesh) -> None:
    """Hold a module's weights in every process of the mesh, as tensors of the same kind as the split ones'.

    torch's parallel styles have none for this (torchtitan's NoParallel); optimizers work on a group at once, and want
    its tensors to be of one mesh.
    """

    def enter(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        return (DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False), *inputs[1:])

    def leave(_: nn.Module, output: Any, mesh: DeviceMesh) -> Tensor:
        local: Tensor = output.to_local()
        return local

    # Its annotations say that they return nothing; its documentation, and its code, that they return the new values.
    distribute_module(module, mesh, input_fn=enter, output_fn=leave)  # type: ignore[arg-type]
