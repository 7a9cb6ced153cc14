"""One small run, made by the documented command, that the tests of this folder look at from all sides."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

Tinytf = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tinytf() -> Tinytf:
    """Run the command in a folder: ``tinytf(folder, "fit", "--config", …)``."""

    def run(folder: Path, *arguments: str, code: int = 0, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tinytf", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, input=text, capture_output=True, text=True)
        assert done.returncode == code, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, tinytf: Tinytf) -> Path:
    """A folder in which `tinytf fit --config configs/tiny.yaml` has run."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    done = tinytf(folder, "fit", "--config", "configs/tiny.yaml")
    (folder / "fit.stdout").write_text(done.stdout)
    (folder / "fit.stderr").write_text(done.stderr)
    return folder


@pytest.fixture(scope="session")
def run_folder(workplace: Path) -> Path:
    return workplace / "checkpoints" / "tiny" / "version_0"
