"""Which part of the data a process reads."""

from __future__ import annotations

from typing import Any


def data_place(trainer: Any) -> tuple[int, int]:
    """``(rank, world)`` among the processes that read different batches; ``(0, 1)`` on one device or without a Trainer.

    Not the global rank: the processes of one tensor-parallel group hold parts of one model, and read the same batch.

    Args:
        trainer: Lightning's, or None.
    """
    shared = trainer.distributed_sampler_kwargs if trainer else None
    return (shared["rank"], shared["num_replicas"]) if shared else (0, 1)
