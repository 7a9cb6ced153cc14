"""One machine's processes, started together: if one is gone, the others end too, soon and with a reason.

For `--trainer.devices N` without torchrun or SLURM, which start and end processes themselves. Lightning's own launcher
kills the first process, without a word, within five seconds of any other's end: also one that is still writing its
last lines, or that has a reason to report.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

PATIENCE = 30.0
"""Seconds that a process has to end by itself once another is gone, before it is ended."""

POLL_SECONDS = 1.0

FIRST_PID_VAR = "TINYTF_FIRST_PROCESS"
"""Environment variable: the pid of the process that started the others."""

# gloo raises plain RuntimeErrors; those of NCCL and of the store are subclasses.
PEER_GONE = (
    r"Connection (was likely )?(closed|reset)|Broken pipe|Socket closed|Timed out waiting"
    r"|ncclRemoteError|remote process exited"
)

CHILDREN: list[subprocess.Popen[bytes]] = []
"""What this process started."""


class Launcher(_SubprocessScriptLauncher):
    """Starts the machine's other processes as Lightning does, and watches them by `Watch`."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        if self.cluster_environment.creates_processes_externally:  # By torchrun, by srun, or by this launcher before.
            return super().launch(function, *args, trainer=trainer, **kwargs)
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        os.environ[FIRST_PID_VAR] = str(os.getpid())
        self._call_children_scripts()
        CHILDREN[:] = self.procs
        _set_num_threads_if_needed(num_processes=self.num_processes)
        watch = Watch(dead_child)
        watch.start()
        try:
            return function(*args, **kwargs)
        finally:
            watch.finished.set()


class Watch(threading.Thread):
    """Ends this process, should it not end by itself, once another one is gone.

    In an exchange with a process that is gone, NCCL waits for its timeout, which is half an hour.

    Args:
        find_dead: says which process is gone and how, or None.
    """

    def __init__(self, find_dead: Callable[[], str | None]) -> None:
        super().__init__(daemon=True, name="watch")
        self.find_dead = find_dead
        self.finished = threading.Event()

    def run(self) -> None:
        while not self.finished.wait(POLL_SECONDS):
            dead = self.find_dead()
            if dead and not self.finished.wait(PATIENCE):
                sys.stderr.write(f"tinytf: error: {advice(dead)}\n")
                sys.stderr.flush()
                os._exit(1)  # The main thread is in an exchange that never returns.
            if dead:
                return


def watch_processes(strategy: Strategy) -> None:
    """Put `Launcher` in the place of Lightning's, and in a process that it started watch the one that did."""
    launcher = strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        strategy._launcher = Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
    first = os.environ.get(FIRST_PID_VAR)
    if first and int(first) == os.getppid():
        Watch(lambda: None if os.getppid() == int(first) else "the first process of this machine ended").start()


def dead_child() -> str | None:
    """Which of the processes that this one started has failed, and how; None if none has."""
    for number, child in enumerate(CHILDREN, start=1):
        code = child.poll()
        if code:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return f"process {number} of {len(CHILDREN) + 1} on this machine {how}"
    return None


def lost_process(error: BaseException) -> str | None:
    """One line if an exchange failed because another process is gone; None for any other failure."""
    if not isinstance(error, RuntimeError) or not re.search(PEER_GONE, str(error)):
        return None
    deadline = time.monotonic() + 2 * POLL_SECONDS
    while (dead := dead_child()) is None and CHILDREN and time.monotonic() < deadline:
        time.sleep(0.05)  # Its sockets close a moment before its exit code can be read.
    return advice(dead or f"another process of the run is gone ({' '.join(str(error).split())[:160]})")


def advice(dead: str) -> str:
    """The line that a process ends with when another is gone."""
    return f"{dead}, so this one ends too; resume with --ckpt_path last"
