"""The files that other services read say the same as pyproject.toml and the Makefile."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info < (3, 11):
    pytest.skip("tomllib came with Python 3.11", allow_module_level=True)
import tomllib

REPOSITORY = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
MAKEFILE = (REPOSITORY / "Makefile").read_text()


def test_ci_runs_what_a_contributor_runs_on_every_supported_python() -> None:
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/test.yml").read_text())
    job = workflow["jobs"]["test"]
    prefix = "Programming Language :: Python :: 3."
    stated = [kind.removeprefix(prefix) for kind in PROJECT["classifiers"] if kind.startswith(prefix)]
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in stated]
    assert PROJECT["requires-python"] == f">=3.{stated[0]}"
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make lint test"]


def test_the_hooks_are_the_tools_of_make_lint_and_fetch_nothing() -> None:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    lint = MAKEFILE.split("\nlint:", 1)[1].split("\n\n", 1)[0].replace("$(BIN)", ".venv/bin")
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        tool = hook["entry"].replace(" --force-exclude", "")
        assert tool in lint, tool


def test_every_requirement_is_pinned() -> None:
    pinned = set(re.findall(r"^([\w.-]+)==", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))
    wanted = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    names = {re.match(r"[\w.-]+", line)[0] for line in wanted}  # type: ignore[index]
    exact = {re.match(r"[\w.-]+", line)[0] for line in wanted if "==" in line}  # type: ignore[index]
    assert {name.lower() for name in names - exact - {"tinytf"}} <= {name.lower() for name in pinned}


def test_the_dockerfile_copies_what_is_there_and_does_not_run_as_root() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    let_in = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in lines:
        if line.startswith("COPY "):
            *sources, _ = line.split()[1:]
            assert {name.removeprefix("./") for name in sources} <= let_in
            assert all((REPOSITORY / name).exists() for name in sources), line
    order = [line.split()[0] for line in lines if line and line[0].isupper()]
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert 'ENTRYPOINT ["tinytf"]' in lines
    assert any("-c constraints.txt" in line for line in lines)
