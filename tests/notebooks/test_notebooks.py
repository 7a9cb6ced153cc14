"""Each notebook runs from top to bottom, and its committed outputs are those of the code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nbformat
import pytest

from tests.notebooks.comparison import alike, differences
from tests.notebooks.execution import FOLDER, NOTEBOOKS, executed

BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
LARGEST = 300_000


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_four() -> None:
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4"]


@BY_NAME
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(FOLDER.iterdir())
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # A kernel that fails does not tidy up.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    ran = executed(path)
    assert not [output for output in outputs(ran) if output.output_type == "error"]
    assert sorted(FOLDER.iterdir()) == before
    found = differences(nbformat.read(path, as_version=4), ran)
    assert not found, "run make notebooks: the committed outputs are of other code\n" + "\n\n".join(found)


RUN = "run checkpoints/a/version_0: 30 steps, 32-true, 1 thread\nstep 10/30  loss 4.1877  2,887 tok/s  eta 0:25"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("32-true, 1 thread", "bf16-mixed, blocks compiled, 2 threads", True),
        ("2,887 tok/s  eta 0:25", "9 tok/s  eta 1:25:00", True),
        ("4.1877", "3.98", True),
        ("4.1877", "2.98", False),
        ("30", "31", False),
        ("  loss 4.1877", "", False),
        ("0:25", "0:25\nsaved", False),
    ],
)
def test_what_varies_between_two_runs_is_no_difference(old: str, new: str, same: bool) -> None:
    assert alike(RUN, RUN.replace(old, new), numbers=True) == same


def test_numbers_of_another_text_are_no_difference() -> None:
    assert alike(RUN, RUN.replace("4.1877", "1.0"), numbers=False)


@BY_NAME
def test_its_committed_outputs_are_whole_and_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    assert outputs(notebook), "no outputs: run make notebooks"
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "not run from top to bottom: make notebooks"


@BY_NAME
def test_its_cells_are_explained_and_it_is_tracked(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith(f"# {path.name[0]} · ")
    pairs = zip(cells, cells[1:], cells[2:], strict=False)
    assert not [three for three in pairs if all(cell.cell_type == "code" for cell in three)], (
        "three cells of code without a word between them"
    )
    tracked = subprocess.run(["git", "ls-files", path.name], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert tracked.stdout.strip() == path.name
