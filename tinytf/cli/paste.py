"""Paths and programs as one would type them: for commands that a user can paste."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def from_here(path: str | Path) -> str:
    """A path as one would type it in this folder."""
    try:
        return os.path.relpath(path)
    except ValueError:  # On Windows, between two drives.
        return str(path)


def console_script(name: str) -> str:
    """A program of this environment as the shell finds it: by its name, or else by its path."""
    script = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    # Installed for one user, programs are not next to Python.
    if not shutil.which(script) or (found and Path(found).parent == script.parent):
        return name
    return shlex.quote(str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script))
