"""Where runs and their checkpoints lie on disk, and what `best` and `last` mean."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from pathlib import Path

from tinytf.errors import UserError
from tinytf.run.checkpoint import damage

ROOT = Path("checkpoints")
BEST, LAST = "best", "last"

VERSION = re.compile(r"version_(\d+)")
SAVED = re.compile(r"step=(\d+)(?:-val_loss=(nan|-?inf|-?\d+\.\d+))?\.ckpt")

log = logging.getLogger(__name__)


def versions(root: Path, name: str | None = None) -> list[Path]:
    """Run folders below ``root`` (all, or those of one name), oldest first.

    The order is that in which they were started: the time of a folder's config.yaml, which is written once.
    """
    found = [
        folder
        for folder in root.glob(f"{glob_escape(name) if name else '*'}/version_*")
        if VERSION.fullmatch(folder.name) and (folder / "config.yaml").is_file()
    ]
    return sorted(found, key=lambda folder: ((folder / "config.yaml").stat().st_mtime_ns, version_of(folder)))


def glob_escape(name: str) -> str:
    """A run's name as a pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def version_of(folder: Path) -> int:
    """The N of a folder ``version_N``; -1 for another name."""
    match = VERSION.fullmatch(folder.name)
    return int(match[1]) if match else -1


def claim(root: Path, name: str) -> Path:
    """Make and return the next version's folder of a run; safe against another process that does the same.

    Raises:
        UserError: where it cannot be made.
    """
    parent = root / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            taken = [version_of(folder) for folder in parent.iterdir()]
            folder = parent / f"version_{max(taken, default=-1) + 1}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise UserError(
            f"run folder {parent}: it cannot be made ({error.strerror}); give another checkpoint.dir or name"
        ) from error


def saved(folder: Path) -> list[Path]:
    """A run's checkpoint files, newest first; at equal steps the periodic one, which is never mid-validation."""
    steps = {}
    for path in folder.glob("step=*.ckpt"):
        match = SAVED.fullmatch(path.name)
        if match and not path.is_symlink():
            steps[path] = (int(match[1]), match[2] is None)
    return sorted(steps, key=lambda path: steps[path], reverse=True)


def newest_step(folder: Path) -> int:
    """The step of a run's newest checkpoint, by its name; -1 where there is none."""
    names = [SAVED.fullmatch(path.name) for path in saved(folder)[:1]]
    return int(names[0][1]) if names and names[0] else -1


def loss_of(path: Path) -> float:
    """The val/loss in a checkpoint's name; infinite where there is none, or no number."""
    match = SAVED.fullmatch(path.name)
    loss = float(match[2] or "inf") if match else math.inf
    return math.inf if math.isnan(loss) else loss


def last_intact(folder: Path) -> Path | None:
    """The newest checkpoint of a run whose checksums hold; each damaged one that is passed over is named."""
    for path in saved(folder):
        wrong = damage(path)
        if wrong is None:
            return path
        log.warning("skipping checkpoint %s: %s", path, wrong)
    return None


def best_intact(folder: Path) -> Path | None:
    """The checkpoint that the best link names, else the one with the lowest loss in its name."""
    link = folder / f"{BEST}.ckpt"
    if link.exists() and damage(link) is None:
        return link.resolve()
    scored = [path for path in saved(folder) if SAVED.fullmatch(path.name)[2] is not None]  # type: ignore[index]
    for path in sorted(scored, key=loss_of):
        wrong = damage(path)
        if wrong is None:
            return path
        log.warning("skipping checkpoint %s: %s", path, wrong)
    return None


def resolve(ckpt_path: str, name: str | None = None, root: str | Path = ROOT) -> Path:
    """The file that ``--ckpt_path`` means.

    Args:
        ckpt_path: a path, or ``best`` or ``last``: those of the newest run that has one.
        name: look at runs of this name only.
        root: the folder of all runs.

    Raises:
        UserError: where there is none, or only damaged ones.
    """
    if ckpt_path not in (BEST, LAST):
        if "://" in ckpt_path:
            raise UserError(f"--ckpt_path {ckpt_path}: only local files are loaded; download it first")
        path = Path(ckpt_path)
        if path.is_symlink() and not path.exists():
            raise UserError(f"--ckpt_path {ckpt_path}: it links to {path.readlink()}, which is gone; give another file")
        if not path.exists():
            raise UserError(f"--ckpt_path {ckpt_path}: there is no such file")
        return path
    folders = versions(Path(root), name)
    pick = best_intact if ckpt_path == BEST else last_intact
    for folder in reversed(folders):
        found = pick(folder)
        if found:
            return found
    where = f"{root}/{name}" if name else str(root)
    if folders:
        raise UserError(f"--ckpt_path {ckpt_path}: no run in {where} has an intact {ckpt_path} checkpoint yet")
    raise UserError(f"--ckpt_path {ckpt_path}: there is no run in {where}; train one with tinytf fit, or give a path")


def link(folder: Path, name: str, target: Path) -> None:
    """Make ``<folder>/<name>.ckpt`` a relative link to a file beside it, replacing the old link in one rename."""
    temporary = folder / f".{name}.ckpt.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(folder / f"{name}.ckpt")


def link_last(folder: Path) -> None:
    """Point ``last.ckpt`` at the run's newest checkpoint."""
    newest = saved(folder)
    if newest:
        link(folder, LAST, newest[0])


def link_best(folder: Path) -> None:
    """Point a missing or dangling ``best.ckpt`` at the file with the lowest loss in its name; drop it without one."""
    best = folder / f"{BEST}.ckpt"
    scored = [path for path in saved(folder) if not math.isinf(loss_of(path))]
    if not best.exists() and scored:
        link(folder, BEST, min(scored, key=loss_of))
    elif not best.exists():
        best.unlink(missing_ok=True)
