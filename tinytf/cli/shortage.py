"""When memory or disk run out: one line that says what to do."""

from __future__ import annotations

import errno

import torch


def shortage(error: BaseException) -> str | None:
    """What ran out, and what to lower, where that is why a command failed; None for any other failure."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{where}; free some space and go on with --ckpt_path last"
    # torch raises a plain RuntimeError where the CPU's memory runs out.
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or on_cpu:
        return (
            "out of memory: lower data.batch_size (trainer.accumulate_grad_batches makes up for it), data.seq_len, "
            "or model.d_model"
        )
    return None
