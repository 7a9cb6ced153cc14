"""Strategies of Lightning with what training, saving and resuming here ask of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from tinytf.errors import UserError
from tinytf.training.distributed.dtensor import spread, whole


class FullySharded(ModelParallelStrategy):
    """FSDP2, and tensor parallelism where asked for: weights, gradients and optimizer state shared out.

    Its checkpoints are one file each, the same file that a run on one device writes: torch's own layout of the
    optimizer's state, whole tensors. So they resume under every strategy, export, and load anywhere. Lightning's own
    number the optimizer's parameters in the model's order, where torch goes by the optimizer's groups: with more
    than one group, state would return to the wrong parameters; and it reads past the checkpoint plugin, unverified.

    Args:
        tensor_parallel_size: processes that share each block's matrices; they should be on one machine. The others
            share the data.
        timeout_minutes: the longest that a process waits for the others in one exchange.
    """

    def __init__(self, tensor_parallel_size: int = 1, timeout_minutes: float = 30.0) -> None:
        if tensor_parallel_size < 1:
            raise UserError(f"trainer.strategy.tensor_parallel_size is {tensor_parallel_size}, but must be at least 1")
        if timeout_minutes <= 0:
            raise UserError(f"trainer.strategy.timeout_minutes is {timeout_minutes}, but must be above 0")
        self.tensor_parallel_size = tensor_parallel_size
        super().__init__(
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=False,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def setup_environment(self) -> None:
        devices, size = self.num_nodes * self.num_processes, self.tensor_parallel_size
        if devices % size:
            raise UserError(
                f"trainer.strategy.tensor_parallel_size {size} does not divide trainer.devices x trainer.num_nodes, "
                f"which is {devices}"
            )
        self._data_parallel_size = devices // size
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
        """The optimizer's ``state_dict`` with whole tensors on the CPU; empty on other processes than the first."""
        # Tensor by tensor, so that no process ever holds more than one whole one of them on its device.
        state = tree_map_only(Tensor, self._gathered, optimizer.state_dict())
        return state if self.is_global_zero else {}

    def _gathered(self, tensor: Tensor) -> Tensor:
        full = whole(tensor)
        return full.cpu() if self.is_global_zero else full[:0] if full.ndim else full

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Through the checkpoint plugin, which verifies it."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every process its part of whole weights."""
        assert self.lightning_module is not None
        targets = self.lightning_module.state_dict()
        shared = {key: spread(value, targets.get(key, value)) for key, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(shared, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every process its part of whole state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            shared = {
                number: {
                    key: spread(value, parameters[number]) if isinstance(value, Tensor) else value
                    for key, value in buffers.items()
                }
                for number, buffers in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shared})


# --trainer.strategy fsdp2, as Lightning's own are named; its `fsdp` is the older FSDP.
StrategyRegistry.register("fsdp2", FullySharded, description="FSDP2, see configs/scale/fsdp.yaml")
