"""Environments of other programs, made once below `.interop/`: a venv for Python's, a node_modules for Node's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / ".interop"
STAMP = "installed.json"
LONGEST = 1200
"""Seconds of an installation or a client."""


def python_client(name: str, *requirements: str) -> Path:
    """The interpreter of a venv that has these packages; the test is skipped where they cannot be installed."""
    folder = FOLDER / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not _is_installed(folder, requirements):
        _run_or_skip([sys.executable, "-m", "venv", "--clear", str(folder)], f"the venv {name}")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run_or_skip([*pip, *requirements], ", ".join(requirements))
        _stamp(folder, requirements)
    return python


def node_client(name: str, *packages: str) -> Path:
    """A folder whose node_modules has these packages; the test is skipped where they cannot be installed."""
    npm, folder = shutil.which("npm"), FOLDER / name
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node is not installed")
    if not _is_installed(folder, packages):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        # Their scripts fetch what a CPU has no need of: CUDA's libraries, 300 MB.
        flags = ["--silent", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
        _run_or_skip([npm, "install", *flags, *packages], ", ".join(packages))
        _stamp(folder, packages)
    return folder


def answer(command: list[str | Path], *arguments: str | Path, cwd: Path | None = None) -> Any:
    """What a client printed last, as JSON; what else it printed is shown where it fails."""
    words = [str(word) for word in (*command, *arguments)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST, cwd=cwd, encoding="utf-8")
    assert ran.returncode == 0, f"{' '.join(words)}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    return json.loads(ran.stdout.splitlines()[-1])


def _is_installed(folder: Path, wanted: tuple[str, ...]) -> bool:
    stamp = folder / STAMP
    return stamp.is_file() and json.loads(stamp.read_text()) == list(wanted)


def _stamp(folder: Path, wanted: tuple[str, ...]) -> None:
    (folder / STAMP).write_text(json.dumps(wanted))


def _run_or_skip(command: list[str], what: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    if ran.returncode:
        last = (ran.stderr.strip() or ran.stdout.strip() or "no output").splitlines()[-1]
        pytest.skip(f"{what} cannot be installed here: {last}")
