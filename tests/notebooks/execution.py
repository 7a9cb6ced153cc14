"""A notebook run top to bottom in a kernel of its own, as a reader would."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: at the first cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    # The times of each cell would be another change in every commit.
    client = NotebookClient(
        notebook, timeout=600, record_timing=False, coalesce_streams=True, resources={"metadata": {"path": FOLDER}}
    )
    # As in an activated environment: what the program proposes to type next is then no path of this machine.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return client.execute(env={**os.environ, "PATH": path})
