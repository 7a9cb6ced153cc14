"""What a loader process does with signals: the training process alone answers them."""

from __future__ import annotations

import os
import signal
import threading


def leave_signals_to_the_trainer(worker: int) -> None:
    """Outlive the signals that schedulers and terminals send to a whole process group; a ``worker_init_fn``.

    A worker that died of one would take the step down that the training process is about to finish and save. The
    training process's own SIGTERM, which ends a stuck worker, is still obeyed.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, where nothing tells who sent a signal.
        os.setpgrp()
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
