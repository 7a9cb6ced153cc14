"""What reaches the screen: our own log as plain lines on stderr, and nothing that a user can do nothing about."""

from __future__ import annotations

import errno
import logging
import sys
import threading
import warnings


def quiet_libraries() -> None:
    """Set up logging and warnings for a command; a test or a notebook that imports tinytf is left alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
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
        ".*dirpath has changed.*",  # A run folder that moved: tinytf.run.callbacks.exact_resume follows it.
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
    error = failure.exc_value
    if not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        threading.__excepthook__(failure)
