"""A disk that fills up: one line, the older files whole, and the same command goes on once there is room."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stress.campaign import arguments, end_of, prepare
from tinytf.cli.main import main
from tinytf.errors import RunError
from tinytf.training.lightning_module import LanguageModel
from tinytf.weights.checkpoint import damage, write_checkpoint

SETTINGS = {"trainer.max_steps": 12, "checkpoint.every_n_steps": 1, "checkpoint.keep_last": 0}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)


def last_line(capfd: pytest.CaptureFixture[str]) -> str:
    said = capfd.readouterr().err
    assert "Traceback" not in said, said
    return said.splitlines()[-1]


def unbroken(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path_factory.mktemp("unbroken")
    prepare(folder)
    monkeypatch.chdir(folder)
    assert main(arguments(SETTINGS)) == 0
    return end_of(folder)


def test_a_checkpoint_that_does_not_fit(
    small_disk: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    reference = unbroken(tmp_path_factory, monkeypatch)
    monkeypatch.chdir(small_disk)
    prepare(small_disk)
    assert main(arguments(SETTINGS)) == 1
    line = last_line(capfd)
    assert line.startswith("tinytf: error: ")
    assert "the disk is full" in line
    run = small_disk / "checkpoints/killed/version_0"
    files = list(run.glob("step-*.ckpt"))
    assert files
    assert [damage(path) for path in files] == [None] * len(files)
    assert not list(run.glob(".*.tmp"))
    assert (run / "last.ckpt").resolve() == max(files)
    grow(small_disk)
    assert main(arguments(SETTINGS)) == 0
    assert reference.differs(end_of(small_disk)) == []


def test_a_journal_that_does_not_fit(
    small_disk: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(small_disk)
    prepare(small_disk)
    whole = LanguageModel.on_train_batch_start
    ballast = small_disk / "ballast"

    def filling(self: LanguageModel, batch: Any, batch_idx: int) -> None:
        whole(self, batch, batch_idx)
        if batch_idx == 3:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)

    settings = {"trainer.max_steps": 400, "trainer.val_check_interval": 400, "checkpoint.every_n_steps": 400}
    with monkeypatch.context() as filled:
        filled.setattr(LanguageModel, "on_train_batch_start", filling)
        assert main(arguments(settings)) == 1
    line = last_line(capfd)
    assert line.startswith("tinytf: error: the disk is full"), line
    ballast.unlink()
    grow(small_disk)
    assert main(arguments({**settings, "trainer.max_steps": 5})) == 0


class FullFile(io.BytesIO):
    """Takes some bytes, then no more."""

    def write(self, data: Any) -> int:
        if self.tell() > 2000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_the_old_file_stays_whole_and_nothing_partial_is_left(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step-0000001.ckpt"
    write_checkpoint(path, {"weights": torch.arange(1000)})

    def failing(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    reason = "the disk is full" if number == errno.ENOSPC else "Permission denied"
    with pytest.raises(RunError, match=reason):
        write_checkpoint(path, {"weights": torch.zeros(1000)})
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.arange(1000))


def test_a_file_that_takes_no_more_is_a_full_disk_though_torch_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: save(content, FullFile()))
    with pytest.raises(RunError, match="the disk is full"):
        write_checkpoint(tmp_path / "step-0000001.ckpt", {"weights": torch.zeros(10_000)})
    assert not list(tmp_path.iterdir())


def test_what_is_not_the_disks_doing_keeps_its_traceback(tmp_path: Path) -> None:
    # Python 3.14 raises its own PicklingError.
    with pytest.raises((AttributeError, TypeError, RuntimeError, pickle.PicklingError)) as caught:
        write_checkpoint(tmp_path / "step-0000001.ckpt", {"weights": lambda: 0})
    assert not isinstance(caught.value, RunError)
    assert not list(tmp_path.iterdir())
