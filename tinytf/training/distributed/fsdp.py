"""FSDP2: weights, gradients and optimizer state sharded over all devices."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from tinytf.errors import UserError
from tinytf.model import Transformer
from tinytf.training.distributed.dtensor import distribute_like, full_tensor


def shard_model(model: Transformer, mesh: DeviceMesh) -> None:
    """Shard a model in place over a mesh of one dimension; module names, and so checkpoint keys, stay.

    Each block is sharded by itself (Zhao et al. 2023, arXiv:2304.11277): its weights are gathered when it is about to
    run and freed when it has. The embedding and the last norm belong to the root, and stay gathered from the start of
    `hidden` to the end of the backward pass, because the loss uses the embedding's weights again.

    Args:
        model: on any device; every process has the same weights.
    """
    # Without a MixedPrecisionPolicy: under bf16-mixed float32 weights are gathered, twice the bytes, and autocast casts
    # them as it does on one device. On GPUs linked by PCIe that may cost; it was not measured.
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    # The loss calls `hidden` and then `unembed`; nothing calls the root's forward.
    register_fsdp_forward_method(model, "hidden")


class FSDP2(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy for FSDP2 alone, with checkpoints of one file.

    A checkpoint is the same file that a run on one device writes: torch's own layout of the optimizer's state, full
    tensors. So it resumes under every strategy, exports, and loads anywhere. Lightning's own numbers the optimizer's
    parameters in the model's order, where torch goes by the optimizer's groups: with more than one group, state would
    return to the wrong parameters; and it reads past the checkpoint plugin, unverified.

    Args:
        timeout_minutes: the longest that a process waits for the others in one exchange.
    """

    def __init__(self, timeout_minutes: float = 30.0) -> None:
        if timeout_minutes <= 0:
            raise UserError(f"trainer.strategy.timeout_minutes is {timeout_minutes}, but must be above 0")
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timedelta(minutes=timeout_minutes)
        )

    def setup_environment(self) -> None:
        # Lightning's "auto" is one data-parallel process per machine, the others tensor-parallel.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        if str(self.precision_plugin.precision) == "16-mixed":
            raise UserError(
                "trainer.precision 16-mixed scales the loss, which sharded gradients do not: use bf16-mixed"
            )
        # What is gathered for the first time in inference mode cannot be trained on: a resumed run whose validation is
        # due would fail. Lightning knows of it for the older FSDP alone.
        loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
        for loop in loops:
            loop.inference_mode = False
        super().setup(trainer)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's ``state_dict`` with full tensors on the CPU; empty on other processes than the first."""
        # Tensor by tensor, so that no process ever holds more than one full one of them on its device.
        state = tree_map_only(Tensor, self._gathered, optimizer.state_dict())
        return state if self.is_global_zero else {}

    def _gathered(self, tensor: Tensor) -> Tensor:
        full = full_tensor(tensor)
        # Not full[:0]: a view would keep all of the full tensor's memory until the last one is gathered.
        return full.cpu() if self.is_global_zero else full.new_empty(0)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Through the checkpoint plugin, which verifies it."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every process its shard of full weights."""
        assert self.lightning_module is not None
        targets = self.lightning_module.state_dict()
        shards = {
            key: distribute_like(value, targets.get(key, value)) for key, value in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(shards, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every process its shard of full state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            shards = {
                number: {
                    key: distribute_like(value, parameters[number]) if isinstance(value, Tensor) else value
                    for key, value in buffers.items()
                }
                for number, buffers in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shards})


# --trainer.strategy fsdp2, as Lightning's own are named; its `fsdp` is the older FSDP.
StrategyRegistry.register("fsdp2", FSDP2, description="FSDP2, see configs/scale/fsdp.yaml")
