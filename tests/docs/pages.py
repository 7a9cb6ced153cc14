"""README.md and docs/*.md, and the code blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The content of each as_code_block block in one of these languages."""
    for language, content in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        if language in languages:
            yield content


def commands(page: Path) -> Iterator[str]:
    """Each command of the page's shell blocks on one line, without its prompt and its comment.

    In a console block the lines after ``$`` are commands and the others are what was printed.
    """
    for content in blocks(page, "console"):
        lines = content.replace("\\\n", " ").splitlines()
        yield from (tidy(line[2:]) for line in lines if line.startswith("$ "))
    for content in blocks(page, "bash"):
        lines = content.replace("\\\n", " ").splitlines()
        yield from (tidy(line) for line in lines if line)


def tidy(command: str) -> str:
    """The command without a comment at its end and with single blanks."""
    return " ".join(re.sub(r"\s{2,}# .*", "", command).split())
