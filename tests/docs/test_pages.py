"""README and docs/ say what the code does: their tables are the code's, their links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import PAGES, REPOSITORY
from tests.docs.tables import PAGE, keys, with_tables
from tinytf.cli.main import COMMANDS

PROOFS = REPOSITORY / "docs" / "architecture.md"
LONGEST_README = 170


def promises() -> list[str]:
    section = PROOFS.read_text(encoding="utf-8").split("## Promises and their tests", 1)[1].split("\n## ", 1)[0]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def anchors(page: Path) -> set[str]:
    """The ids that GitHub gives to the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "run make docs"


def test_the_table_of_keys_has_every_key_of_every_shipped_config() -> None:
    known = set(re.findall(r"^\| `([\w.]+)`", keys(), re.MULTILINE))
    for path in (REPOSITORY / "configs").rglob("*.yaml"):
        for section, content in yaml.safe_load(path.read_text()).items():
            names = (
                [f"{section}.{key.removesuffix('+')}" for key in content] if isinstance(content, dict) else [section]
            )
            assert all(any(key == name or key.startswith(f"{name}.") for key in known) for name in names), path


def test_every_shipped_config_is_in_the_table_of_files() -> None:
    listed = set(re.findall(r"`(configs/[\w./-]+\.yaml)`", PAGE.read_text(encoding="utf-8")))
    assert listed >= {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").rglob("*.yaml")}


@pytest.mark.parametrize("line", promises())
def test_a_promise_names_its_proof(line: str) -> None:
    proofs = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", line)
    assert proofs, f"no test is linked: {line}"
    for name, file in proofs:
        assert name in names_in(REPOSITORY / file), f"{file} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_files_that_the_pages_name_are_there() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:configs|tests|tinytf)/[\w./-]+)`", page.read_text(encoding="utf-8")):
            assert (REPOSITORY / name).exists(), f"{page.name}: {name}"


def test_keys_that_the_pages_name_are_keys() -> None:
    known = set(re.findall(r"^\| `([\w.]+)`", keys(), re.MULTILINE))
    sections = "|".join(sorted({key.partition(".")[0] for key in known if "." in key}))
    for page in PAGES:
        for key in re.findall(rf"`((?:{sections})\.[a-z][\w.]*)[`:]", page.read_text(encoding="utf-8")):
            is_file = key.rsplit(".", 1)[-1] in ("json", "onnx", "pt", "pt2", "gguf")
            assert is_file or any(name == key or name.startswith(f"{key}.") for name in known), f"{page.name}: {key}"


def test_commands_and_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for program, names in re.findall(r"`(tinytf|make) ([a-z-]+)", page.read_text(encoding="utf-8")):
            assert names in (COMMANDS if program == "tinytf" else targets), f"{page.name}: {program} {names}"


def test_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README
