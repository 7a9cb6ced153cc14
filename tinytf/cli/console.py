"""What reaches the screen: our own log as plain lines on stderr, and no line that a user can do nothing about.

Nothing heavy is imported at the top: commands that need no torch use this too.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tinytf.errors import RunError
from tinytf.utils.files import is_disk_full
from tinytf.utils.machine import usable_cores
from tinytf.utils.text import public


class PublicFormatter(logging.Formatter):
    """Addresses in messages lose what may be a credential: terminals and job logs are shared."""

    def format(self, record: logging.LogRecord) -> str:
        return str(public(super().format(record)))


def quiet_libraries() -> None:
    """Set up logging and warnings for a command; a test or a notebook that imports tinytf is left alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PublicFormatter("%(message)s"))
    own = logging.getLogger("tinytf")
    own.handlers[:] = [handler]
    own.setLevel(logging.INFO)
    own.propagate = False
    threading.excepthook = _thread_failed
    # Tips, and the devices found, which the first line of a run says too.
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # On how gloo and two dimensions of parallelism exchange shards, once a process.
    for name in ("torch.distributed.tensor._collective_utils", "torch.distributed.tensor._redistribute"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",  # Reading a batch takes microseconds.
        ".*LeafSpec.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*Checkpoint directory .* exists and is not empty.*",  # A resumed run's own.
        ".*your dataloader is not resumable.*",  # Its position is one integer in the datamodule's state.
        ".*callbacks used to create the checkpoint need to be provided.*",  # An evaluation needs none of them.
        ".*but have no logger configured.*",  # The table of results goes to stdout.
        ".*It is recommended to use .*sync_dist=True.*",  # torchmetrics has brought the processes' sums together.
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # Which nothing here changes in place.
        ".*litlogger.*",
        ".*litmodels.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    # TensorBoard's writing thread meets a full disk, and so does its next caller, who says so in one line.
    if not is_disk_full(failure.exc_value):
        threading.__excepthook__(failure)


@contextmanager
def heavy_command() -> Iterator[None]:
    """The process of a command that computes: quiet libraries, threads, memory; known failures as one line."""
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from tinytf.training.distributed.launcher import lost_process
    from tinytf.training.hardware import tune_glibc_malloc

    quiet_libraries()
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        logging.getLogger("tinytf").setLevel(logging.ERROR)  # The first process speaks for all.
    if "OMP_NUM_THREADS" not in os.environ:
        # torch counts the machine's cores; a container may be given a share of their time.
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    tune_glibc_malloc()
    try:
        yield
    except Exception as error:
        reason = explain_shortage(error) or lost_process(error)
        if reason:
            raise RunError(reason) from error
        raise


def explain_shortage(error: BaseException) -> str | None:
    """What ran out, memory or disk, and what to lower; None for any other failure."""
    import torch

    if is_disk_full(error):
        filename = getattr(error, "filename", None)
        return (
            f"the disk is full{f' ({filename})' if filename else ''}; free some space and resume with --ckpt_path last"
        )
    # torch raises a plain RuntimeError when the CPU's memory runs out.
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or on_cpu:
        return (
            "out of memory: lower data.batch_size (trainer.accumulate_grad_batches makes up for it), data.seq_len, "
            "or model.d_model"
        )
    # Nor has it a class for this.
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader "):
        return (
            f"a process that reads batches was lost ({str(error).partition('.')[0]}): perhaps memory or /dev/shm is "
            "full; --data.num_workers 0 reads them in the training process. Resume with --ckpt_path last"
        )
    return None
