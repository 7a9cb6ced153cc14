"""One attempt at a training run in a forked child, killed by SIGKILL at a chosen instant."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

LONGEST = 600
"""Seconds of an attempt; its stack is then written to attempts.log, and it ends with exit code 1."""


@dataclass
class Instants:
    """Counts the instants a run passes through; at the chosen one it sends itself, with its loader processes, a signal.

    Args:
        fatal: the count at which to die; 0 never dies.
        number: the signal to die of, or to be stopped by.
        times: how often it is sent.
        pause: seconds before each time but the first.
        only: the function around whose calls instants are counted; all that are watched, where it is empty.
    """

    fatal: int = 0
    number: int = signal.SIGKILL
    times: int = 1
    pause: float = 0.0
    only: str = ""
    passed: int = 0

    def tick(self, name: str) -> None:
        if self.only in ("", name):
            self.passed += 1
            if self.passed == self.fatal:
                for sent in range(self.times):
                    time.sleep(self.pause if sent else 0.0)
                    # From a process of its own: a loader process obeys the training process's own signals.
                    if (sender := os.fork()) == 0:
                        if self.number != signal.SIGKILL:  # The copy of this process must not obey it too.
                            signal.signal(self.number, signal.SIG_IGN)
                        os.killpg(0, self.number)
                        os._exit(0)
                    os.waitpid(sender, 0)

    def around(self, owner: Any, name: str) -> None:
        """Make an instant just before, and one just after, each call of a function."""
        inner: Callable[..., Any] = getattr(owner, name)

        def ticking(*args: Any, **kwargs: Any) -> Any:
            self.tick(name)
            result = inner(*args, **kwargs)
            self.tick(name)
            return result

        setattr(owner, name, ticking)


def watch(instants: Instants) -> None:
    """Put instants where a kill could hurt: between the parts of a step, of a validation, of a save, of a log row."""
    import torch

    from tinytf.run import directory
    from tinytf.run.callbacks import checkpoints
    from tinytf.run.journal import Journal
    from tinytf.training.lightning_module import LanguageModel
    from tinytf.utils import files

    for name in ("training_step", "configure_gradient_clipping", "validation_step", "on_validation_epoch_end"):
        instants.around(LanguageModel, name)
    instants.around(LanguageModel, "optimizer_step")
    instants.around(torch, "save")
    instants.around(files, "fsync_dir")
    instants.around(checkpoints, "link")
    instants.around(directory, "link")
    instants.around(Journal, "write")
    instants.around(Journal, "sync")


def attempt(
    arguments: list[str], folder: Path, instants: Instants | None = None, after: float | None = None
) -> tuple[int, int]:
    """Run `tinytf` with these arguments in a child process, in a folder.

    Args:
        arguments: of the command line.
        folder: the working directory; what the child says goes to attempts.log there.
        instants: where to die.
        after: seconds until this process sends SIGKILL, if the child is still there.

    Returns:
        The exit code (negative: the signal that ended it), and the instants passed through.
    """
    # Imported here once, not in each child.
    import_module("tinytf.cli.fit")
    count_read, count_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(count_read)
        _run(arguments, folder, instants, count_write)
    os.close(count_write)
    if after is not None:
        deadline = time.monotonic() + after
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        else:
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(count_read) as pipe:
        passed = pipe.read()
    return os.waitstatus_to_exitcode(status), int(passed or 0)


def _run(arguments: list[str], folder: Path, instants: Instants | None, count: int) -> None:
    code = 99
    os.setpgrp()
    # Python 3.14 starts loader processes from a fork server; the parent's does not answer a fork of it.
    multiprocessing.set_start_method("fork", force=True)
    try:
        os.chdir(folder)
        log = os.open("attempts.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Seen once: a child that spun in the advanced profiler for 50 minutes, and the suite waited for it.
        faulthandler.dump_traceback_later(LONGEST, exit=True, file=log)
        # Under pytest these are its own capture, of the parent.
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        # Lightning's own handler is missing if pytest had set up logging when it was imported.
        logging.getLogger("lightning.pytorch").handlers = [logging.StreamHandler(sys.stderr)]
        if instants:
            watch(instants)
        from tinytf.cli.main import main

        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        if instants:
            os.write(count, str(instants.passed).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)
