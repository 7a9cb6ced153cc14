"""A notebook run top to bottom in a kernel of its own, as a reader would."""

from __future__ import annotations

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
    return client.execute()
