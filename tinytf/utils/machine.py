"""Facts about this machine and this process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

CGROUP_QUOTAS = (
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
"""Where Linux says how many microseconds of CPU time a container may use per period: version 2, then version 1."""


def usable_cores() -> int:
    """Cores that this process may keep busy: those it may run on, and no more than its container's share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in CGROUP_QUOTAS:
        try:
            quota, period = " ".join(Path(file).read_text() for file in files).split()
        except (OSError, ValueError):  # Another version of cgroups, or another system.
            continue
        if quota not in ("max", "-1"):
            return max(1, min(cores, int(quota) // int(period)))
    return cores


@cache
def usable_memory() -> int | None:
    """Bytes of memory that this process may use: a container's share, else the machine's; None if not known."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # There is no such file, or no limit: "max".
            limit = int(Path(file).read_text())
            if limit < 2**60:  # What cgroup v1 writes for no limit.
                return limit
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def cpu_name() -> str:
    """The processor's name as its maker writes it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model", "Hardware")):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    return platform.processor() or platform.machine()


@cache
def cpu_vendor() -> str | None:
    """The maker of an x86 processor by its CPUID, such as ``GenuineIntel``; None if it cannot be known."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), None)
    return next((name for name in ("GenuineIntel", "AuthenticAMD") if name in platform.processor()), None)


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def this_process() -> dict[str, Any]:
    """``pid``, ``started`` and ``machine``: enough for `is_alive` on the same machine, and no machine's name."""
    return {"pid": os.getpid(), "started": _start_time(os.getpid()), "machine": _machine()}


def is_alive(process: dict[str, Any]) -> bool | None:
    """Whether a process recorded by `this_process` still runs; None if it cannot be seen from here."""
    pid = process.get("pid")
    # Windows sends signal 0, which is its CTRL_C_EVENT.
    if os.name == "nt" or process.get("machine") != _machine() or not isinstance(pid, int):
        return None
    try:
        os.kill(pid, 0)
    except OverflowError:  # A number that is no pid, from a journal of somebody else.
        return None
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It exists, and is another user's.
    started = process.get("started")
    return started is None or _start_time(pid) == started


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to the process's start, which tell a reused pid apart; None if it has ended."""
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
