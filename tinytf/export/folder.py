"""The folder of an export: what an earlier one left there, and how a new one takes its place."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
        redone: entries whose files go when the new ones come.
        same: whether it is of the same checkpoint.
    """

    kept: list[dict[str, Any]] = field(default_factory=list)
    redone: list[dict[str, Any]] = field(default_factory=list)
    same: bool = False

    @classmethod
    def found(
        cls, folder: Path, subject: Subject, formats: Sequence[Format], replace: bool, say: Callable[[str], None]
    ) -> Earlier:
        """Raises UserError where the folder holds anything but an export that may be added to or replaced."""
        refuse_strangers(folder)
        if not (folder / manifest.NAME).exists():
            return cls()
        old = manifest.read(folder)
        made, artefacts = old["checkpoint"], old["artefacts"]
        if made.get("sha256") != subject.source.get("sha256"):
            if not replace:
                raise UserError(
                    f"--output_dir {folder}: it holds the export of another checkpoint ({made.get('path')}); "
                    "give another folder, or delete it"
                )
            say(f"replacing the export of {made.get('path')} (step {made.get('step')})")
            return cls([], artefacts)
        again = {format.name for format in formats}
        kept = [entry for entry in artefacts if entry["name"] not in again and _is_whole(folder, entry, say)]
        return cls(kept, [entry for entry in artefacts if entry["name"] in again], same=True)

    def without(self, unwritten: Container[str], folder: Path) -> Earlier:
        """With the earlier artefacts of the same checkpoint, if whole, where these formats could not be written."""
        if not self.same:
            return self
        spared = [entry for entry in self.redone if entry["name"] in unwritten and not manifest.changes(folder, entry)]
        return Earlier([*self.kept, *spared], [entry for entry in self.redone if entry not in spared], same=True)


def _is_whole(folder: Path, entry: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Whether an artefact that stays is still what was proven; one that was taken away is no longer listed."""
    if not (folder / entry["file"]).exists():
        say(f"{entry['name']}: {entry['file']} is gone, so it is no longer listed")
        return False
    changed = manifest.changes(folder, entry)
    if changed:
        raise UserError(f"{folder}: {changed[0]}; add {entry['name']} to --formats, or delete {entry['file']}")
    return True


def refuse_strangers(folder: Path) -> None:
    """Raise UserError where a folder holds something, and no export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: it is a file; give a folder")
    if not folder.exists() or (folder / manifest.NAME).exists():
        return
    strangers = [path.name for path in folder.iterdir() if not path.name.startswith((PARTIAL, manifest.TEMPORARY))]
    if strangers:
        raise UserError(
            f"--output_dir {folder}: it holds {strangers[0]} and no {manifest.NAME}, so it is not an export; "
            "give an empty or a new folder"
        )


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the artefacts, so that publishing is a rename; taken away however the work ends.

    Raises:
        UserError: where it cannot be made, or another export is writing into the folder.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder))
            for leftover in folder.glob(f"{PARTIAL}*"):
                remove(leftover)
            partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
        except OSError as error:
            raise UserError(f"--output_dir {folder}: it cannot be written to ({error.strerror})") from error
        stack.callback(remove, partial)
        yield partial


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two exports into one folder would take each other's files away. The lock goes when the process does."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(
            f"--output_dir {folder}: another export is writing into it; wait for it, or give another folder"
        ) from None
    try:
        yield
    finally:
        os.close(lock)


def publish(partial: Path, folder: Path, names: Sequence[str], earlier: Earlier, content: dict[str, Any]) -> None:
    """Rename files from the partial folder into place, and take away what they replace.

    The manifest goes first and last: stopped between the two, the folder is still an export, of what was kept.
    """
    manifest.write(folder, content | {"artefacts": earlier.kept})
    for name in [*(entry["file"] for entry in earlier.redone), *names]:
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
