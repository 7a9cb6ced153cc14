"""README says what the code does: its tables are the code's, and its checklist names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from tests.readme.tables import keys, with_tables
from tinytf.cli.main import COMMANDS

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TOPICS = ("configuration", "tracking", "logs", "best-N", "resume", "git commit", "export", "CLI", "docs")


def checklist() -> list[str]:
    section = README.split("## Production checklist", 1)[1].split("\n## ", 1)[0]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_tables_are_those_of_the_code() -> None:
    assert with_tables(README) == README, "run make docs"


def test_the_table_of_keys_has_every_key_of_every_shipped_config() -> None:
    known = set(re.findall(r"^\| `([\w.]+)`", keys(), re.MULTILINE))
    for path in (REPOSITORY / "configs").rglob("*.yaml"):
        for section, content in yaml.safe_load(path.read_text()).items():
            names = [f"{section}.{key}" for key in content] if isinstance(content, dict) else [section]
            assert set(names) <= known, path


@pytest.mark.parametrize("line", checklist())
def test_a_line_of_the_checklist_names_its_proof(line: str) -> None:
    proofs = re.findall(r"\[`(test_\w+)`\]\((tests/[\w/]+\.py)\)", line)
    assert proofs, f"no test is linked: {line}"
    for name, file in proofs:
        assert name in names_in(REPOSITORY / file), f"{file} has no {name}"


def test_the_checklist_covers_what_production_asks_for() -> None:
    said = [line.split("|")[1].strip() for line in checklist()]
    assert set(TOPICS) <= set(said), said


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\(((?!https?:|#)[^)]+)\)", README):
        assert (REPOSITORY / target.split("#")[0]).exists(), target


def test_every_command_and_make_target_that_is_shown_exists() -> None:
    shown = re.findall(r"^\$ (?:\S+=\S+ )*(tinytf|make) ([a-z-]+)", README, re.MULTILINE)
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert shown
    for program, name in shown:
        assert name in (COMMANDS if program == "tinytf" else targets), f"{program} {name}"
