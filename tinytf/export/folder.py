"""The folder of an export: what an earlier one left there, and how a new one takes its place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinytf.errors import UserError
from tinytf.export import manifest
from tinytf.export.formats import Format
from tinytf.export.subject import Subject

PARTIAL = ".partial-"


@dataclass(frozen=True)
class Earlier:
    """What an earlier export left in the folder.

    Args:
        kept: entries of its manifest that stay.
        stale: files that go when the new ones come.
    """

    kept: list[dict[str, Any]] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    @classmethod
    def found(
        cls, folder: Path, subject: Subject, formats: Sequence[Format], replace: bool, say: Callable[[str], None]
    ) -> Earlier:
        """Raises UserError where the folder holds anything but an export that may be added to or replaced."""
        _refuse_strangers(folder)
        if not (folder / manifest.NAME).exists():
            return cls()
        old = manifest.read(folder)
        made = old["checkpoint"]
        redone = {format.name for format in formats}
        if made.get("sha256") != subject.source.get("sha256"):
            if not replace:
                raise UserError(
                    f"--output_dir {folder}: it holds the export of another checkpoint ({made.get('path')}); "
                    "give another folder, or delete it"
                )
            say(f"replacing the export of {made.get('path')} (step {made.get('step')})")
            redone = {entry["name"] for entry in old["artefacts"]}
        kept = [entry for entry in old["artefacts"] if entry["name"] not in redone]
        return cls(kept, [entry["file"] for entry in old["artefacts"] if entry["name"] in redone])


def _refuse_strangers(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: it is a file; give a folder")
    if not folder.exists() or (folder / manifest.NAME).exists():
        return
    strangers = [path.name for path in folder.iterdir() if not path.name.startswith(PARTIAL)]
    if strangers:
        raise UserError(
            f"--output_dir {folder}: it holds {strangers[0]} and no {manifest.NAME}, so it is not an export; "
            "give an empty or a new folder"
        )


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the artefacts, so that publishing is a rename; taken away however the work ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{PARTIAL}*"):
            remove(leftover)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    except OSError as error:
        raise UserError(f"--output_dir {folder}: it cannot be written to ({error.strerror})") from error
    try:
        yield partial
    finally:
        remove(partial)


def publish(partial: Path, folder: Path, names: Sequence[str], earlier: Earlier, content: dict[str, Any]) -> None:
    """Rename files from the partial folder into place, and take away what they replace.

    The manifest goes first and last: stopped between the two, the folder is still an export, of what was kept.
    """
    manifest.write(folder, content | {"artefacts": earlier.kept})
    for name in [*earlier.stale, *names]:
        remove(folder / name)
    for name in names:
        if (partial / name).exists():
            (partial / name).replace(folder / name)
    manifest.write(folder, content)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
