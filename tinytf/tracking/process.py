"""Which process writes a run, so that a reader can tell a running one from a crashed one."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """``pid``, ``started`` and ``machine``: enough for `alive` on the same machine, and no machine's name."""
    return {"pid": os.getpid(), "started": _start_time(os.getpid()), "machine": _machine()}


def alive(process: dict[str, Any]) -> bool | None:
    """Whether a process noted by `this_process` still runs; None where it cannot be seen from here."""
    if process.get("machine") != _machine():
        return None
    pid = process["pid"]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It exists, and is another user's.
    return process["started"] is None or _start_time(pid) == process["started"]


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to the process's start, by which a reused pid is told apart; None where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses, which may hold anything.
    fields = stat.rpartition(")")[2].split()
    state, start = fields[0], fields[19]
    return None if state == "Z" else int(start)


def _machine() -> str:
    """The same for processes that can see each other's pids: one boot of one machine, one pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot, namespace = platform.node(), ""
    return hashlib.blake2b(f"{boot}/{namespace}".encode(), digest_size=8).hexdigest()
