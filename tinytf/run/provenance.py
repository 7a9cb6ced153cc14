"""What made a run: code, command, machine and versions, in plain types, readable years later."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

import tinytf
from tinytf.utils.files import atomic_write
from tinytf.utils.machine import cpu_name, package_versions, usable_cores
from tinytf.utils.text import ADDRESS, SECRET, public, utc_now

GIT_SECONDS = 10.0
"""How long git may take: on a network file system a status was seen to take minutes."""

MOST_FILES = 100
"""Names of changed files that are recorded; they go into every checkpoint."""

PACKAGES = (
    "torch", "lightning", "jsonargparse", "tensorboard", "torchmetrics", "tokenizers", "numpy", "rich",
    "wandb", "mlflow-skinny", "onnx", "onnxruntime", "onnxscript", "safetensors", "gguf", "triton",
)  # fmt: skip

log = logging.getLogger(__name__)


def collect(hostname: bool = False) -> dict[str, Any]:
    """Where and from what this process runs, in plain types.

    It never raises: what cannot be found out is None, or a sentence that says why. The git fields are those of the
    repository around the working directory, where the user's own experiment lives; tinytf's version is under
    ``packages``.

    Args:
        hostname: record the machine's name too. Off by default, because checkpoints are shared.
    """
    found = {
        "time": utc_now(),
        "command": _try(lambda: shlex.join(masked(sys.argv))),
        "git": _try(lambda: git(Path.cwd())),
        "hardware": {
            "cpu": _try(cpu_name),
            "cores": _try(usable_cores),
            "ram_gb": _try(ram_gb),
            "gpus": _try(gpu_names),
        },
        "os": _try(platform.platform),
        "python": platform.python_version(),
        "packages": {"tinytf": tinytf.__version__, **_try(lambda: package_versions(PACKAGES))},
    }
    return found | {"hostname": _try(platform.node)} if hostname else found


def _try(ask: Callable[[], Any]) -> Any:
    # A run must not die of its own description, whatever an odd machine answers.
    try:
        return ask()
    except Exception as error:
        return {"unknown": f"{type(error).__name__}: {error}"}


def masked(argv: Sequence[str]) -> list[str]:
    """The command line without secrets, as `public` hides them; a flag's value may be the argument after it."""
    shown: list[str] = []
    flag = ""  # The one whose value may follow.
    for argument in argv:
        # What begins with a dash is a flag, or the value of a secret: only a flag begins with two, and has no space.
        is_flag = argument.startswith("-") and not (
            SECRET.search(flag) and (not argument.startswith("--") or " " in argument)
        )
        if is_flag:
            flag, equals, value = argument.partition("=")
            shown.append(f"{flag}={_masked_value(flag, value)}" if equals else argument)
            flag = "" if equals else flag
        else:
            shown.append(_masked_value(flag, argument))
            flag = ""
    return shown


def _masked_value(flag: str, value: str) -> str:
    try:
        given = value if ADDRESS.match(value) else yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):  # A path that looks like YAML.
        given = value
    if isinstance(given, str):
        given = value  # As it was typed: with its quotes, and with what YAML takes for a comment.
    name = flag.rstrip("+")  # Which appends to a list.
    hidden = public({name: given})[name]
    if hidden == given:
        return str(public(value))
    return hidden if isinstance(hidden, str) else json.dumps(hidden, default=str)


# -- git -------------------------------------------------------------------------------------------------------


def git(folder: Path) -> dict[str, Any]:
    """The state of the checkout around a folder.

    Returns:
        ``commit``, ``branch`` (None on a detached head), ``dirty`` (tracked files changed), ``changed`` (their names),
        ``untracked`` (number of files that git neither tracks nor ignores), and ``note``: None, or why something is
        missing.
    """
    state: dict[str, Any] = dict.fromkeys(("commit", "branch", "dirty", "changed", "untracked", "note"))
    try:
        # The second version of the format has the commit and the branch too: one process, one state.
        answer = run_git(folder, "status", "--porcelain=v2", "--branch", "--no-renames", "-z")
    except FileNotFoundError:
        return state | {"note": "git is not installed"}
    except subprocess.TimeoutExpired:
        return state | {"note": f"git did not answer within {GIT_SECONDS:.0f} s"}
    except subprocess.CalledProcessError as error:
        return state | {"note": error.stderr.decode("utf-8", "replace").partition("\n")[0]}
    lines = answer.decode("utf-8", "replace").split("\0")
    head = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# "))
    # Eight fields before the name of a changed file, ten before that of an unmerged one.
    changed = [line.split(" ", 8 if line[0] == "1" else 10)[-1] for line in lines if line[:2] in ("1 ", "u ")]
    commit, branch = head["branch.oid"], head["branch.head"]
    more = f"{len(changed) - MOST_FILES} more files are changed" if len(changed) > MOST_FILES else None
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "dirty": bool(changed),
        "changed": changed[:MOST_FILES],
        "untracked": sum(line.startswith("? ") for line in lines),
        "note": "no commit yet" if commit == "(initial)" else more,
    }


def write_uncommitted_patch(path: Path, folder: Path) -> None:
    """Write ``git diff HEAD`` of the checkout around a folder to a file, if there is a difference.

    It is written whole, secrets included: `tracking.git_diff` asks for it, and it is in no checkpoint. A patch that an
    earlier attempt from the same step wrote is the record of that attempt: the new one gets a number.
    """
    try:
        diff = run_git(folder, "diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD")
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("tracking.git_diff: no %s is written (%s)", path.name, error)
        return
    if diff:
        first, number = path, 2
        while path.exists():
            path, number = first.with_name(f"{first.stem}-{number}.patch"), number + 1
        with atomic_write(path) as file:
            file.write(diff)


def run_git(folder: Path, *arguments: str) -> bytes:
    """What git prints.

    Raises:
        FileNotFoundError: if it is not installed.
        subprocess.SubprocessError: if it fails or takes longer than GIT_SECONDS.
    """
    # Without GIT_OPTIONAL_LOCKS=0 a status would take the index lock away from the user's own git.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_SECONDS,
        check=True,
    )  # fmt: skip
    return done.stdout


# -- the machine -----------------------------------------------------------------------------------------------


def ram_gb() -> float:
    """Memory of the machine in GiB."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 2)


def gpu_names() -> list[str]:
    """The CUDA devices that this process sees."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
