"""Which run is the newest, links where links cannot be made, and one run directory for each process."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tinytf.errors import UserError
from tinytf.run import recovery
from tinytf.run.callbacks.checkpoints import BestCheckpoints
from tinytf.run.directory import (
    best_intact,
    create_run_dir,
    link,
    link_best,
    linked_checkpoint,
    resolve_checkpoint,
    run_dirs,
    version_dirs,
)
from tinytf.run.journal import FILE_NAME, encode
from tinytf.run.recovery import acquire_run_lock, release_run_locks
from tinytf.weights.checkpoint import write_checkpoint


def run_started(root: Path, name: str, hour: int | None) -> Path:
    run_dir = create_run_dir(root, name)
    (run_dir / "config.yaml").touch()
    if hour is not None:
        start = {"event": "start", "time": f"2026-01-31T{hour:02}:00:00.000000Z", "step": 0}
        (run_dir / FILE_NAME).write_bytes(encode(start) + encode({**start, "event": "metrics", "step": 2}))
    return run_dir


def test_runs_are_in_the_order_of_their_journals_whatever_their_files_times(tmp_path: Path) -> None:
    later, earlier = run_started(tmp_path, "a", 12), run_started(tmp_path, "b", 9)
    shutil.copytree(earlier, tmp_path / "c" / "version_7")
    os.utime(later / "config.yaml", (0, 0))
    assert run_dirs(tmp_path) == [earlier, tmp_path / "c" / "version_7", later]
    assert run_dirs(tmp_path, "b") == [earlier]


@pytest.mark.parametrize("content", [None, b"", b"\0" * 64, b'{"event": "st', b"no JSON\n", b'{"event": "start"}\n'])
def test_a_run_whose_journal_does_not_say_follows_the_version_before_it(tmp_path: Path, content: bytes | None) -> None:
    first = run_started(tmp_path, "a", 9)
    torn = run_started(tmp_path, "a", None)
    other = run_started(tmp_path, "b", 10)
    if content is not None:
        (torn / FILE_NAME).write_bytes(content)
    assert run_dirs(tmp_path) == [first, torn, other]


def test_names_that_look_like_patterns_are_names(tmp_path: Path) -> None:
    odd = run_started(tmp_path, "lr=[1e-3]*", 9)
    run_started(tmp_path, "lr=1", 10)
    assert run_dirs(tmp_path, "lr=[1e-3]*") == [odd]


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)


def saved(run_dir: Path, name: str) -> Path:
    path = run_dir / name
    write_checkpoint(path, {"text": name})
    return path


@pytest.mark.usefixtures("no_links")
def test_where_links_cannot_be_made_a_small_file_points(tmp_path: Path) -> None:
    worse = saved(tmp_path, "step-0000002-val_loss-2.5000.ckpt")
    better = saved(tmp_path, "step-0000004-val_loss-2.0000.ckpt")
    link(tmp_path, "best", better)
    assert not (tmp_path / "best.ckpt").is_symlink()
    assert best_intact(tmp_path) == resolve_checkpoint(str(tmp_path / "best.ckpt")) == better
    better.unlink()
    with pytest.raises(UserError, match=r"it points to step-0000004-val_loss-2\.0000\.ckpt, which is gone"):
        resolve_checkpoint(str(tmp_path / "best.ckpt"))
    link_best(tmp_path)
    assert linked_checkpoint(tmp_path, "best") == worse
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", worse.name}


def test_best_of_an_older_run_is_said_to_be_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    older, newer = run_started(tmp_path, "a", 9), run_started(tmp_path, "b", 10)
    best, last = saved(older, "step-0000002-val_loss-2.5000.ckpt"), saved(newer, "step-0000001.ckpt")
    assert resolve_checkpoint("last", root=tmp_path) == last
    assert not caplog.text
    assert resolve_checkpoint("best", root=tmp_path) == best
    assert f"the newest run, {newer}, has no intact best checkpoint yet, so it is that of {older}" in caplog.text


@pytest.mark.parametrize("target", ["../secret/step-0000001.ckpt", "/etc/passwd", "best.ckpt", "step-0000001.ckpt\n"])
def test_a_pointer_leads_nowhere_but_to_a_checkpoint_next_to_it(tmp_path: Path, target: str) -> None:
    path = tmp_path / "best.ckpt"
    path.write_text(target)
    assert resolve_checkpoint(str(path)) == path


def test_the_list_of_the_best_follows_the_folder_and_loses_what_is_not_there(tmp_path: Path) -> None:
    losses = {2: 2.5, 4: 2.0, 6: 2.25, 8: 2.25}
    names = {step: f"step-{step:07d}-val_loss-{loss:.4f}.ckpt" for step, loss in losses.items()}
    state = {
        **BestCheckpoints(4).state_dict(),
        "dirpath": "/where/it/was",
        "best_k_models": {f"/where/it/was/{names[step]}": loss for step, loss in losses.items()},
        "best_model_path": f"/where/it/was/{names[4]}",
        "best_model_score": 2.0,
    }
    for step in (2, 6, 8):
        (tmp_path / names[step]).touch()
    best = BestCheckpoints(2)
    best.dirpath = str(tmp_path)
    best.load_state_dict(state)
    assert list(best.best_k_models) == [str(tmp_path / names[6]), str(tmp_path / names[8])]
    # Of equal ones Lightning displaces the one that came first, in a run that was never stopped too.
    assert best.kth_best_model_path == best.best_model_path == str(tmp_path / names[6])
    assert best.best_model_score == best.kth_value == 2.25

    branched = BestCheckpoints(2)
    branched.dirpath = str(tmp_path / "elsewhere")
    branched.load_state_dict(state)
    assert (branched.best_k_models, branched.best_model_path, branched.best_model_score) == ({}, "", None)


def test_a_lock_ends_with_its_release_and_not_with_a_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_another_process() -> bool:
        child = os.fork()
        if child == 0:
            try:
                release_run_locks()
                acquire_run_lock(tmp_path)
            except UserError:
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    calls = []
    monkeypatch.setattr(recovery, "_lock", lambda descriptor, lock=recovery._lock: calls.append(lock(descriptor)))
    acquire_run_lock(tmp_path)
    acquire_run_lock(tmp_path)
    assert len(calls) == 1  # Windows refuses the second, to this process too.
    assert not in_another_process()
    assert not in_another_process()
    release_run_locks()
    assert in_another_process()


def test_a_run_of_another_user_is_skipped_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine, private = run_started(tmp_path, "a", 9), run_started(tmp_path, "b", 10)
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.parent == private:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert run_dirs(tmp_path) == [mine]
    assert f"skipping run {private}: Permission denied" in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no modes that refuse")
def test_a_folder_that_may_not_be_read_is_not_an_empty_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "checkpoints"
    mine, private = run_started(root, "a", 9), run_started(root, "b", 10).parent
    with as_nobody(tmp_path):
        private.chmod(0)
        assert run_dirs(root) == [mine]
        assert f"skipping runs: {private}: its runs cannot be listed: Permission denied" in caplog.text
        with pytest.raises(UserError, match="its runs cannot be listed"):
            run_dirs(root, "b")
        root.chmod(0)
        with pytest.raises(UserError, match="its runs cannot be listed"):
            run_dirs(root)
        with pytest.raises(UserError, match="Permission denied"):
            resolve_checkpoint("last", "a", root)
        root.chmod(0o700)
        private.chmod(0o700)


@pytest.mark.skipif(os.name == "nt", reason="making a link needs a right there")
def test_a_link_to_itself_hides_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine = run_started(tmp_path, "a", 9)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "notes.txt").touch()
    assert run_dirs(tmp_path) == version_dirs(tmp_path) == [mine]
    assert f"skipping runs: {tmp_path / 'loop'}: " in caplog.text


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """As a user whom modes bind, with this folder: root reads everything."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, -1)
    opened = [parent for parent in folder.parents if not parent.stat().st_mode & 0o001]
    modes = [parent.stat().st_mode for parent in opened]
    for parent in opened:
        parent.chmod(0o711)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for parent, mode in zip(opened, modes, strict=True):
            parent.chmod(mode)
