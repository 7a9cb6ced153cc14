"""Run directories and their checkpoints on disk, and what `best` and `last` mean."""

from __future__ import annotations

import contextlib
import difflib
import logging
import math
import os
import re
from pathlib import Path

from tinytf.errors import UserError
from tinytf.run.journal import started_at
from tinytf.utils.files import atomic_write, open_user_file, read_bytes, user_path

ROOT = Path("checkpoints")
BEST, LAST = "best", "last"

VERSION = re.compile(r"version_(\d+)")
CHECKPOINT = re.compile(r"step-(\d+)(?:-val_loss-(nan|-?inf|-?\d+\.\d+))?\.ckpt")
"""A checkpoint's name: step and, of one that was saved as one of the best, val/loss. No ``=`` and no ``:`` in it, which
Windows, some object stores and Hydra's command lines refuse or misread."""

log = logging.getLogger(__name__)


def is_own(ckpt: Path, root: Path) -> bool:
    """Whether a checkpoint is of a run below the user's ``checkpoint.dir``.

    By its place alone: a folder of runs that was downloaded into ``checkpoint.dir`` is taken for the user's.
    """
    run_dir = ckpt.resolve().parent
    return version_of(run_dir) >= 0 and run_dir.parent.parent == root.resolve()


def run_dirs(root: Path, name: str | None = None) -> list[Path]:
    """Run directories below ``root`` (all, or those of one name), in the order in which the runs were started.

    The order is by the runs' own journals: copying or moving a directory changes file times, never these. A run whose
    journal does not say, because it was killed before its first record or that is torn, comes right after the version
    before it.
    """
    found = []
    started: dict[Path, str] = {}
    for run_dir in version_dirs(root, name):
        started[run_dir.parent] = started_at(run_dir) or started.get(run_dir.parent, "")
        try:
            is_run = (run_dir / "config.yaml").is_file()
        except PermissionError as error:
            log.warning("skipping run %s: %s", run_dir, error.strerror)
            continue
        if is_run:
            found.append((started[run_dir.parent], version_of(run_dir), run_dir))
    return [run_dir for _, _, run_dir in sorted(found)]


def version_dirs(root: Path, name: str | None = None) -> list[Path]:
    """The folders ``<name>/version_N`` below ``root``, by name and N.

    Raises:
        UserError: if ``root``, or the folder of a ``name`` that was asked for, may not be read; others are logged.
    """
    if name:
        return _versions(user_path(root / name, what="run directory"))
    found = []
    for parent in _entries(root):
        try:
            found += _versions(parent)
        except UserError as error:
            log.warning("skipping runs: %s", error)
    return found


def _versions(parent: Path) -> list[Path]:
    return sorted((path for path in _entries(parent) if version_of(path) >= 0), key=version_of)


def _entries(folder: Path) -> list[Path]:
    try:
        # Not by glob, for which a folder that may not be read is empty; by its ".", as one may list what one may not
        # enter, and nothing there could be looked at.
        return [folder / name for name in sorted(os.listdir(f"{folder}/."))]  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder}: its runs cannot be listed: {error.strerror}") from None


def version_of(run_dir: Path) -> int:
    """The N of a directory ``version_N``; -1 for another name."""
    match = VERSION.fullmatch(run_dir.name)
    return int(match[1]) if match else -1


def create_run_dir(root: Path, name: str) -> Path:
    """Make the directory of a run's next version; safe against another process that does the same.

    Raises:
        UserError: if it cannot be made.
    """
    parent = root / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            run_dir = parent / f"version_{max(map(version_of, parent.iterdir()), default=-1) + 1}"
            with contextlib.suppress(FileExistsError):
                run_dir.mkdir()
                return run_dir
    except OSError as error:
        raise UserError(
            f"run directory {parent}: it cannot be made ({error.strerror}); give another checkpoint.dir or name"
        ) from error


def saved_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoint files, newest first; at equal steps the periodic one, which is never mid-validation."""
    steps = {}
    # By the names alone: a run of 100,000 steps is listed without opening one of its files.
    for path in run_dir.glob("step-*.ckpt"):
        match = CHECKPOINT.fullmatch(path.name)
        if match and not path.is_symlink():
            steps[path] = (int(match[1]), match[2] is None)
    return sorted(steps, key=lambda path: steps[path], reverse=True)


def newest_step(run_dir: Path) -> int:
    """The step of a run's newest checkpoint, by its name; -1 without one."""
    names = [CHECKPOINT.fullmatch(path.name) for path in saved_checkpoints(run_dir)[:1]]
    return int(names[0][1]) if names and names[0] else -1


def loss_of(path: Path) -> float:
    """The val/loss in a checkpoint's name; infinite if it has none, or NaN."""
    match = CHECKPOINT.fullmatch(path.name)
    loss = float(match[2] or "inf") if match else math.inf
    return math.inf if math.isnan(loss) else loss


def is_periodic(path: Path) -> bool:
    """Whether a file is named as the periodic checkpoints are, without a loss."""
    match = CHECKPOINT.fullmatch(path.name)
    return match is not None and match[2] is None


# -- best and last ---------------------------------------------------------------------------------------------


def damage(path: Path) -> str | None:
    """As `tinytf.weights.checkpoint.damage`; torch is imported when a file is read, which `tinytf runs` never does."""
    from tinytf.weights import checkpoint

    return checkpoint.damage(path)


def last_intact(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run whose checksums are right; each damaged one that is skipped is named."""
    return _first_intact(saved_checkpoints(run_dir))


def best_intact(run_dir: Path) -> Path | None:
    """The checkpoint that ``best.ckpt`` names, else the one with the lowest loss in its name."""
    linked = linked_checkpoint(run_dir, BEST)
    if linked and damage(linked) is None:
        return linked
    scored = [path for path in saved_checkpoints(run_dir) if not is_periodic(path)]
    return _first_intact(sorted(scored, key=loss_of))


def _first_intact(paths: list[Path]) -> Path | None:
    for path in paths:
        wrong = damage(path)
        if wrong is None:
            return path
        log.warning("skipping checkpoint %s: %s", path, wrong)
    return None


def resolve_checkpoint(
    ckpt_path: str | Path, name: str | None = None, root: str | Path = ROOT, *, of_folder: str = BEST
) -> Path:
    """The file that ``--ckpt_path`` means.

    Args:
        ckpt_path: a file, a run's folder, or ``best`` or ``last``: those of the newest run; of an older one, which is
            logged, if it has none yet.
        name: look at runs of this name only.
        root: the folder of all runs.
        of_folder: ``best`` or ``last``, what is taken of a run's folder; which file that is, is logged.

    Raises:
        UserError: if there is none, or only damaged ones.
    """
    if ckpt_path not in (BEST, LAST):
        return _checkpoint_at(ckpt_path, of_folder)
    root = user_path(root, what="checkpoint.dir")
    found = run_dirs(root, name)
    pick = best_intact if ckpt_path == BEST else last_intact
    for run_dir in reversed(found):
        if path := pick(run_dir):
            if run_dir != found[-1]:
                log.warning(
                    "--ckpt_path %s: the newest run, %s, has no intact %s checkpoint yet, so it is that of %s",
                    ckpt_path, found[-1], ckpt_path, run_dir,
                )  # fmt: skip
            return path
    where = f"{root}/{name}" if name else str(root)
    if found:
        raise UserError(f"--ckpt_path {ckpt_path}: no run in {where} has an intact {ckpt_path} checkpoint yet")
    if name:
        refuse_unknown_name(name, root)
    raise UserError(f"--ckpt_path {ckpt_path}: there is no run in {where}; train one with tinytf fit, or give a path")


def refuse_unknown_name(name: str, root: Path, how_to_start: str = "") -> None:
    """Refuse a name that no run has, if there are runs of other names: nothing is where it is looked for.

    Raises:
        UserError: naming the nearest ones, and ``how_to_start`` a run of that name.
    """
    names = sorted({run_dir.parent.name for run_dir in run_dirs(root)} - {name})
    if names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names[:10])}"
        raise UserError(f"--name {name}: no run in {root} has that name; {hint}{how_to_start}")


def _checkpoint_at(ckpt_path: str | Path, of_folder: str) -> Path:
    if "://" in str(ckpt_path):
        raise UserError(f"--ckpt_path {ckpt_path}: only local files are loaded; download it first")
    path = user_path(ckpt_path, what="--ckpt_path")
    if path.is_symlink() and not path.exists():
        raise UserError(f"--ckpt_path {ckpt_path}: it links to {path.readlink()}, which is gone; give another file")
    if not path.exists():
        hint = (
            f"; for the run of that name: --ckpt_path best --name {ckpt_path}" if run_dirs(ROOT, str(ckpt_path)) else ""
        )
        raise UserError(f"--ckpt_path {ckpt_path}: there is no such file{hint}")
    if path.is_dir():
        return _checkpoint_in(path, of_folder)
    open_user_file(path, what="--ckpt_path").close()
    target = pointer_target(path)
    if target is None:
        return path
    if not target.exists():
        raise UserError(f"--ckpt_path {ckpt_path}: it points to {target.name}, which is gone; give another file")
    open_user_file(target, what="--ckpt_path").close()
    return target


def _checkpoint_in(folder: Path, kind: str) -> Path:
    """The best or last checkpoint of a run's folder, ``<name>/version_N``, or of the newest run in ``<name>``."""
    runs = run_dirs(folder.absolute().parent, folder.absolute().name) if _versions(folder) else []
    run_dir = folder / runs[-1].name if runs else folder
    found = best_intact(run_dir) if kind == BEST else last_intact(run_dir)
    if found is None and (folder / "export.json").is_file():
        usable = [*sorted(folder.glob("model_kv*.onnx")), *folder.glob("huggingface")]
        given = usable[0] if usable else "FILE, made by export --formats onnx-kv,"
        raise UserError(
            f"--ckpt_path {folder}: it is an export, and holds no checkpoint: generate takes --model {given} in place "
            "of --ckpt_path"
        )
    if found is None:
        raise UserError(
            f"--ckpt_path {folder}: it is a folder, and {run_dir if runs else 'it'} has no intact {kind} checkpoint; "
            "give a file, or the folder of a run that has one"
        )
    log.warning("--ckpt_path %s: its %s checkpoint is %s", folder, kind, run_dir / found.name)
    return found


# -- links -----------------------------------------------------------------------------------------------------


def link(run_dir: Path, name: str, target: Path) -> None:
    """Make ``<run_dir>/<name>.ckpt`` a relative link to a file next to it, replacing the old one in one rename.

    Where links cannot be made (Windows without the right to, exFAT), it is a small file with the target's name in it.
    """
    path = run_dir / f"{name}.ckpt"
    # Not left to the rename below: over a folder it fails after the checkpoint is saved, with an error of the system.
    if path.is_dir() and not path.is_symlink():
        raise UserError(f"{path}: it is a folder, but a run keeps a link of that name; move it away")
    temporary = run_dir / f".{path.name}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
    except (OSError, NotImplementedError):
        with atomic_write(path) as file:
            file.write(target.name.encode())
    else:
        temporary.replace(path)


def pointer_target(path: Path) -> Path | None:
    """The file that a pointer file made by `link` names; None for any other file."""
    if not path.is_file() or path.stat().st_size > 255:
        return None
    # Only the name of a checkpoint in the same folder: a pointer in a copied folder leads nowhere else.
    name = read_bytes(path, what="checkpoint", limit=255).decode("utf-8", "replace")
    return path.with_name(name) if CHECKPOINT.fullmatch(name) else None


def linked_checkpoint(run_dir: Path, name: str) -> Path | None:
    """The file that ``best.ckpt`` or ``last.ckpt`` leads to, if both exist."""
    path = run_dir / f"{name}.ckpt"
    target = pointer_target(path) or path
    return target.resolve() if target.is_file() else None


def link_last(run_dir: Path) -> None:
    """Point ``last.ckpt`` at the run's newest checkpoint."""
    if newest := saved_checkpoints(run_dir):
        link(run_dir, LAST, newest[0])


def link_best(run_dir: Path) -> None:
    """Point a missing or dangling ``best.ckpt`` at the file with the lowest loss in its name; remove it without one."""
    if linked_checkpoint(run_dir, BEST):
        return
    scored = [path for path in saved_checkpoints(run_dir) if not math.isinf(loss_of(path))]
    if scored:
        link(run_dir, BEST, min(scored, key=loss_of))
    else:
        # A folder of that name is the user's, and is refused by name when a link is due.
        with contextlib.suppress(IsADirectoryError, PermissionError):
            (run_dir / f"{BEST}.ckpt").unlink(missing_ok=True)
