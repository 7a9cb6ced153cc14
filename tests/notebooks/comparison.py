"""What the outputs of two runs of a notebook have in common: all but times, speeds, sizes, places, and rounding.

Outputs that follow from a machine or a version as a whole, such as a sampled text, are in cells with nbval's tag.
"""

from __future__ import annotations

import re

import nbformat

IGNORED = "nbval-ignore-output"
"""The tag of a cell whose output varies; pytest's plugin nbval reads the same one."""

TOLERANCE = 0.1
"""Of numbers that training gives, as a share: bfloat16 and another processor's float32 change a loss by 1 to 3 %."""

VARIES = (
    (r"(/version_\d+: \d+ steps), .*", r"\1"),  # How it is executed: precision, compilation, threads.
    (
        r"\bthread\(s\), .*|[+-]?0\.00000\b|[\d,]+ +[\d,]+ +\d+\.\dx",
        "",
    ),  # A table of parity: processor, speeds, rounding.
    (r"[\d,]+ tok/s|\beta [\d:]+|\d+\.\d s\b|\b\d+:\d\d:\d\d\b|\bin \d+:\d\d\b", ""),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d[\d:.]*Z?", ""),
    (r"[\d,]+ bytes|^ *[\d,]+(?=  \S)|tfevents\.\S+", ""),  # Sizes follow the lengths of paths and times inside.
    (r"\S*/(?=checkpoints/)", ""),
    (r"\b(?=[a-f]*\d)[0-9a-f]{12}\b|\b\d\.\de-\d\d\b", ""),  # Fingerprints; distances that are rounding.
)
NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def differences(committed: nbformat.NotebookNode, ran: nbformat.NotebookNode) -> list[str]:
    """Each output that is not that of the code, both of them.

    Numbers count only on the Python that made the committed ones: its help pages are the text of the models.
    """
    python = [notebook.metadata.language_info.version.rsplit(".", 1)[0] for notebook in (committed, ran)]
    found = []
    for before, now in zip(committed.cells, ran.cells, strict=True):
        if IGNORED in before.metadata.get("tags", []) or before.cell_type != "code":
            continue
        for kind in sorted({*(old := texts(before)), *(new := texts(now))}):
            pair = old.get(kind, ""), new.get(kind, "")
            if not alike(*pair, numbers=python[0] == python[1]):
                found.append(f"{before.source}\n--- {kind}, committed:\n{pair[0]}\n--- now:\n{pair[1]}")
    return found


def texts(cell: nbformat.NotebookNode) -> dict[str, str]:
    """The text of a cell's outputs, by stream or kind; of a picture only that there is one."""
    found: dict[str, str] = {}
    for output in cell.outputs:
        if output.output_type == "stream":
            found[output.name] = found.get(output.name, "") + output.text
        else:
            found[output.output_type] = f"{sorted(output.data)}\n{output.data.get('text/plain', '')}"
    return found


def alike(committed: str, now: str, numbers: bool) -> bool:
    """Whether the words are the same, and if `numbers`, small counts are and other numbers are near."""
    committed, now = (without_what_varies(text) for text in (committed, now))
    if words(committed) != words(now):
        return False
    pairs = zip(NUMBER.findall(committed), NUMBER.findall(now), strict=True)
    return not numbers or all(near(*pair) for pair in pairs)


def without_what_varies(text: str) -> str:
    for pattern, kept in VARIES:
        text = re.sub(pattern, kept, text, flags=re.MULTILINE)
    return text


def words(text: str) -> str:
    """The text without its numbers, and without the blanks that align them."""
    return " ".join(NUMBER.sub("#", text).split())


def near(committed: str, now: str) -> bool:
    first, second = (float(number.replace(",", "").rstrip(".")) for number in (committed, now))
    counts = "." not in committed and max(first, second) < 1000
    return first == second if counts else abs(first - second) <= TOLERANCE * max(first, second)
