"""A wheel installs, and runs outside the checkout with the configs it carries."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
CONFIGS = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "configs").rglob("*") if path.is_file()}


@pytest.fixture(scope="module", name="wheel")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves its build folder beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "tinytf", "configs",
         "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, tracked):
        if (REPOSITORY / name).is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((REPOSITORY / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    done = subprocess.run([*pip, *build], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module", name="place")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    subprocess.run([*command, "--no-index", "--target", str(place), str(wheel)], check=True)
    return place


def test_the_wheel_holds_the_package_and_every_config(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {f"tinytf/{name}" for name in CONFIGS} == {name for name in held if name.startswith("tinytf/configs/")}
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "tinytf").rglob("*.py")}
    folders = (REPOSITORY / "tinytf/serve/page", REPOSITORY / "tinytf/export/formats/web/page")
    pages = {str(path.relative_to(REPOSITORY)) for folder in folders for path in folder.iterdir()}
    assert modules | pages | {"tinytf/py.typed"} <= held
    assert not [name for name in held if name.startswith(("tests/", "configs/", "notebooks/"))]


def test_it_runs_outside_the_checkout(place: Path, tmp_path: Path) -> None:
    def tinytf(*arguments: str) -> str:
        command = [sys.executable, "-m", "tinytf", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(place)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    assert tinytf("--version").startswith("tinytf ")
    printed = yaml.safe_load(tinytf("fit", "--config", "tiny", "--config", "loggers/wandb", "--print_config"))
    assert (printed["name"], printed["trainer"]["max_steps"], printed["tracking"]["wandb"]["project"]) == (
        "tiny",
        30,
        "tinytf",
    )
    assert list(tmp_path.iterdir()) == []
