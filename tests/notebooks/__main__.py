"""Run the notebooks and keep their outputs: `python -m tests.notebooks [FILE…]`."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

from tests.notebooks.execution import NOTEBOOKS, executed

for notebook in [Path(name) for name in sys.argv[1:]] or NOTEBOOKS:
    nbformat.write(executed(notebook), notebook)
    print(f"{notebook}: {notebook.stat().st_size / 1000:.0f} kB")
