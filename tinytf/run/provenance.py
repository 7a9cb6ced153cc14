"""What made a run: code, command, machine and versions, in plain types, so that it can be told years later."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tinytf
from tinytf.utils.machine import cpu_name, package_versions, usable_cores
from tinytf.utils.text import utc_now

DIFF_LIMIT = 64 * 1024
"""Bytes of `git diff` that are kept; it goes into every checkpoint."""

GIT_SECONDS = 10.0

PACKAGES = (
    "torch", "lightning", "jsonargparse", "tensorboard", "torchmetrics", "tokenizers", "numpy", "rich",
    "wandb", "mlflow-skinny", "onnx", "onnxruntime", "onnxscript", "safetensors", "gguf", "triton",
)  # fmt: skip

_SECRET_NAME = (
    r"(api[_-]?key|access[_-]?key|private[_-]?key|secret|passw(or)?d|passphrase|credential|"
    r"(access|auth|api|bearer|refresh|hf|gh|git(hub|lab)|wandb|session|id)[_-]?token)"
)
SECRET_FLAG = re.compile(rf"{_SECRET_NAME}|(^|[._-])token$", re.IGNORECASE)
"""Names of settings whose values are not written down. `tokens` and `tokenizer` are not among them."""

KEY_BEGINS, KEY_ENDS = (re.compile(f"-----{edge} [A-Z ]*PRIVATE KEY") for edge in ("BEGIN", "END"))
SECRET_LINE = re.compile(
    rf"{_SECRET_NAME}\w*['\"]?\s*(=>|[:=])"
    r"|\btoken['\"]?\s*[:=]\s*['\"]?[\w.-]{16,}"
    r"|authorization\s*:|\bbearer\s+[\w.-]{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b(AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|sk-[\w-]{20,}|hf_\w{20,}|xox[abprs]-[\w-]{10,})"
    r"|://[^/\s:@]+:[^/\s@]+@",
    re.IGNORECASE,
)
LEFT_OUT = "[line left out: it looks like a secret]"


def collect(hostname: bool = False) -> dict[str, Any]:
    """Everything worth knowing about where and from what this process runs; plain types only.

    It never raises: what cannot be learnt is None, or a sentence that says why. The git fields are those of
    the repository around the working directory, where the user's own experiment lives; tinytf's own version
    stands under ``packages``.

    Args:
        hostname: write the machine's name down too. Off by default, because checkpoints are shared.
    """
    found = {
        "time": utc_now(),
        "command": _told(lambda: shlex.join(masked(sys.argv))),
        "git": _told(lambda: git(Path.cwd())),
        "hardware": {
            "cpu": _told(cpu_name),
            "cores": _told(usable_cores),
            "ram_gb": _told(ram_gb),
            "gpus": _told(gpu_names),
        },
        "os": _told(platform.platform),
        "python": platform.python_version(),
        "packages": {"tinytf": tinytf.__version__, **_told(lambda: package_versions(PACKAGES))},
    }
    return found | {"hostname": _told(platform.node)} if hostname else found


def _told(learn: Callable[[], Any]) -> Any:
    # A run must not die of its own description, whatever an odd machine answers.
    try:
        return learn()
    except Exception as error:
        return {"unknown": f"{type(error).__name__}: {error}"}


def masked(argv: Sequence[str]) -> list[str]:
    """The command line with the values of flags that look like secrets, and values that do, put as ``***``."""
    shown: list[str] = []
    hide_next = False
    for argument in argv:
        flag, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("--"):
            shown.append("***")
        elif flag.startswith("-") and SECRET_FLAG.search(flag):
            shown.append(f"{flag}=***" if equals else flag)
        else:
            shown.append("***" if SECRET_LINE.search(argument) else argument)
        hide_next = flag.startswith("-") and not equals and bool(SECRET_FLAG.search(flag))
    return shown


def git(folder: Path) -> dict[str, Any]:
    """The state of the checkout around a folder.

    Returns:
        ``commit``, ``branch`` (None on a detached head), ``dirty`` (tracked files changed), ``untracked``
        (number of files that git neither tracks nor ignores), ``diff`` against the commit, and ``note``: None,
        or why something is missing.
    """
    state: dict[str, Any] = dict.fromkeys(("commit", "branch", "dirty", "untracked", "diff", "note"))
    questions: dict[str, tuple[tuple[str, ...], int]] = {
        "inside": (("rev-parse", "--is-inside-work-tree"), 64),
        "commit": (("rev-parse", "--verify", "HEAD"), 128),
        "branch": (("symbolic-ref", "--quiet", "--short", "HEAD"), 1024),
        "status": (("status", "--porcelain", "--no-renames"), 1024 * 1024),
        "diff": (("diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD"), 4 * DIFF_LIMIT),
    }
    try:
        with ThreadPoolExecutor(len(questions)) as pool:
            replies = pool.map(lambda question: _ask_git(folder, *question), questions.values())
            answer = dict(zip(questions, replies, strict=True))
    except FileNotFoundError:
        return state | {"note": "git is not installed"}
    except TimeoutError:
        return state | {"note": f"git did not answer within {GIT_SECONDS:.0f} s"}
    if answer["inside"].strip() != "true":
        return state | {"note": "not a git checkout"}
    lines = answer["status"].splitlines()
    state["branch"] = answer["branch"].strip() or None
    state["dirty"] = any(not line.startswith("??") for line in lines)
    state["untracked"] = sum(line.startswith("??") for line in lines)
    if not answer["commit"]:
        return state | {"note": "no commit yet"}
    diff, note = clean_diff(answer["diff"])
    return state | {"commit": answer["commit"].strip(), "diff": diff, "note": note}


def _ask_git(folder: Path, arguments: tuple[str, ...], limit: int) -> str:
    # Without GIT_OPTIONAL_LOCKS=0 a status would take the index lock away from the user's own git.
    process = subprocess.Popen(
        ["git", *arguments], cwd=folder, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(GIT_SECONDS, give_up)
    timer.start()
    try:
        with process:
            assert process.stdout is not None
            said = process.stdout.read(limit)
            process.kill()
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError
    return said.decode("utf-8", "replace")


def clean_diff(diff: str) -> tuple[str, str | None]:
    """A diff without lines that look like secrets, at most DIFF_LIMIT bytes, and a note of what is missing."""
    kept, secrets, size, cut, in_key = [], 0, 0, False, False
    for line in diff.splitlines():
        in_key = (in_key or bool(KEY_BEGINS.search(line))) and not line.startswith("diff --git ")
        if in_key or SECRET_LINE.search(line):
            in_key = in_key and not KEY_ENDS.search(line)
            secrets, line = secrets + 1, line[:1] + LEFT_OUT
        size += len(line.encode()) + 1
        if size > DIFF_LIMIT:
            cut = True
            break
        kept.append(line)
    notes = [f"the diff is cut at {DIFF_LIMIT // 1024} kB"] if cut else []
    notes += [f"{secrets} lines of the diff that look like secrets are left out"] if secrets else []
    return "\n".join(kept), "; ".join(notes) or None


def ram_gb() -> float:
    """Memory of the machine in GiB."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 2)


def gpu_names() -> list[str]:
    """The CUDA devices that this process sees."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
