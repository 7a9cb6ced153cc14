"""Damaged files: found whatever the damage, passed over and named where there is a choice, else one line."""

from __future__ import annotations

import errno
import logging
import zipfile
from pathlib import Path

import pytest
import torch

from tests.stress.campaign import prepare, run
from tests.stress.killing import attempt
from tinytf.errors import UserError
from tinytf.run.directory import (
    best_intact,
    last_intact,
    link,
    link_best,
    loss_of,
    resolve_checkpoint,
    saved_checkpoints,
)
from tinytf.run.recovery import recover_run_dir
from tinytf.weights.checkpoint import damage, read_checkpoint, write_checkpoint


def write(path: Path, number: int = 0) -> Path:
    write_checkpoint(path, {"weights": torch.arange(300) + number, "text": "to be"})
    return path


def spoil(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "without its last byte":
        path.write_bytes(whole[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "zeroed":
        path.write_bytes(bytes(len(whole)))
    elif how == "a zeroed page":
        with zipfile.ZipFile(path) as archive:
            record = max(archive.infolist(), key=lambda info: info.file_size)
        start = record.header_offset + 200
        path.write_bytes(whole[:start] + bytes(512) + whole[start + 512 :])
    elif how == "a flipped bit":
        with zipfile.ZipFile(path) as archive:
            record = max(archive.infolist(), key=lambda info: info.file_size)
        place = record.header_offset + 400
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])


HOW = ("truncated", "without its last byte", "empty", "zeroed", "a zeroed page", "a flipped bit")


@pytest.mark.parametrize("how", HOW)
def test_the_newest_intact_one_is_picked_and_the_others_named(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tinytf"), "propagate", True)
    old, middle, new = (write(tmp_path / f"step-000000{step}.ckpt") for step in (3, 6, 9))
    for path in (middle, new):
        spoil(path, how)
    assert last_intact(tmp_path) == old
    for path in (middle, new):
        assert f"skipping checkpoint {path}" in caplog.text
    with pytest.raises(UserError):
        read_checkpoint(new)


def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "step-0000003.ckpt")

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "testzip", fails)
    with pytest.raises(UserError, match=r"cannot be read \(Input/output error\)"):
        last_intact(tmp_path)
    assert path.exists()


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    """Every byte of a small file, one bit each: either it is refused, or what is read is what was written."""
    path = write(tmp_path / "a.ckpt")
    whole, content = path.read_bytes(), torch.load(path, weights_only=True)
    harmless = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        if damage(path) is None:
            harmless += 1
            read = torch.load(path, weights_only=True)
            assert torch.equal(read["weights"], content["weights"]), place
            assert read["text"] == content["text"], place
    assert harmless < len(whole) / 2


def test_a_run_resumes_past_its_damaged_newest_files(tmp_path: Path) -> None:
    """They are set aside: counted as the newest, they would push intact ones out."""
    case = {"trainer.val_check_interval": 4, "checkpoint.keep_last": 1}
    prepare(tmp_path / "spoilt")
    run({**case, "trainer.max_steps": 9, "model.schedule": "Constant"}, tmp_path / "spoilt")
    (folder,) = (tmp_path / "spoilt" / "checkpoints" / "killed").iterdir()
    newest = folder / "step-0000009.ckpt"
    assert (folder / "last.ckpt").resolve() == newest
    for path in folder.glob("step-0000009*.ckpt"):  # The best of the last step too.
        spoil(path, "truncated")
    code, _ = attempt(["fit", "--ckpt_path=last", "--trainer.max_steps=11"], tmp_path / "spoilt")
    said = (tmp_path / "spoilt" / "attempts.log").read_text()
    assert code == 0, said
    assert f"skipping checkpoint {newest.relative_to(tmp_path / 'spoilt')}" in said
    assert "resuming from step 8" in said
    assert (folder / f"{newest.name}.damaged").exists()
    assert (folder / "last.ckpt").readlink().name == "step-0000011.ckpt"


def test_a_damaged_file_given_by_its_path_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tinytf.cli.main import main

    monkeypatch.chdir(tmp_path)
    spoil(write(tmp_path / "a.ckpt"), "a flipped bit")
    for command in ("fit", "validate", "generate", "inspect", "export"):
        extra = ["--prompt", "to"] if command == "generate" else []
        assert main([command, "--ckpt_path", "a.ckpt", *extra]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "a.ckpt" in line
        assert "checksum" in line


def test_links_that_point_at_nothing(tmp_path: Path) -> None:
    worse, better = (write(tmp_path / f"step-{step:07d}-val_loss-{loss}.ckpt") for step, loss in ((2, 2.5), (4, 2.0)))
    link(tmp_path, "best", tmp_path / "step-0000006-val_loss-1.5000.ckpt")
    with pytest.raises(UserError, match=r"it links to step-0000006-val_loss-1\.5000\.ckpt, which is gone"):
        resolve_checkpoint(str(tmp_path / "best.ckpt"))
    assert best_intact(tmp_path) == better
    link_best(tmp_path)
    assert (tmp_path / "best.ckpt").resolve() == better
    better.unlink()
    worse.unlink()
    link_best(tmp_path)
    assert not (tmp_path / "best.ckpt").is_symlink()


def test_a_link_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no instant at which it is missing: it is never removed, only renamed over."""
    old, new = (write(tmp_path / f"step-000000{step}.ckpt") for step in (1, 2))
    link(tmp_path, "last", old)
    removed: list[Path] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **kwargs: (removed.append(path), unlink(path, **kwargs)))
    link(tmp_path, "last", new)
    assert (tmp_path / "last.ckpt").readlink() == Path(new.name)
    assert tmp_path / "last.ckpt" not in removed


def test_recovery_touches_only_what_is_ours(tmp_path: Path) -> None:
    resumed = write(tmp_path / "step-0000004.ckpt")
    older = write(tmp_path / "step-0000002.ckpt")
    spoil(older, "truncated")
    for name in ("notes.txt", "mine.ckpt", "step-9.ckpt.bak", ".hidden", "nonfinite-step-0000009.pt"):
        (tmp_path / name).write_text("the user's")
    stale = {
        tmp_path / f".{name}.tmp"
        for name in ("step-0000006.ckpt.4711.ab", "metrics.jsonl.7.cd", "nonfinite-step-0000009.pt.1.ef", "best.ckpt.9")
    }
    for path in stale:
        path.write_text("torn")
    before = set(tmp_path.iterdir())
    recover_run_dir(tmp_path, resumed, finished=False)
    after = set(tmp_path.iterdir())
    assert before - after == stale
    assert {path.name for path in after - before} == {"last.ckpt"}


def test_the_order_of_files_and_losses_in_names(tmp_path: Path) -> None:
    names = [
        "step-0000002.ckpt",
        "step-0000010-val_loss-nan.ckpt",
        "step-0000010.ckpt",
        "step-0000003-val_loss-1.5000.ckpt",
    ]
    for name in [*names, "step-0000011-val_loss-what.ckpt", "other.ckpt"]:
        (tmp_path / name).touch()
    assert [path.name for path in saved_checkpoints(tmp_path)] == [names[2], names[1], names[3], names[0]]
    assert loss_of(tmp_path / names[1]) == float("inf")
    assert min(saved_checkpoints(tmp_path), key=loss_of).name == names[3]
