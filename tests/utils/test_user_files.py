"""Files that a user names: whatever the path and whatever stands there, it is read with bounds or refused by name."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinytf.errors import UserError
from tinytf.utils.files import open_user_file, read_text, user_path

ODD = [
    "",
    "~nosuch/x",
    "a\0b",
    "x" * 5_000,
    "x/" * 5_000,
    "\udc80",
    "gone",
    "a.txt/b",
    ".",
    "/dev/zero",
    "/proc/self/mem",
]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("text")


@pytest.mark.parametrize("path", ODD, ids=lambda path: repr(path)[:20])
def test_an_odd_path_is_refused_by_name(path: str) -> None:
    with pytest.raises(UserError) as caught:
        read_text(path, what="--config", limit=1_000)
    assert str(caught.value).startswith("--config")
    assert len(str(caught.value)) < 400


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=300))
def test_any_path_is_a_path_or_refused(path: str) -> None:
    try:
        user_path(path, what="key")
        read_text(path, what="key", limit=10_000_000)
    except UserError:
        pass


@pytest.mark.skipif(os.name == "nt", reason="there are no such files on Windows")
def test_what_is_no_regular_file_is_named_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    for path, kind in [("pipe", "named pipe"), ("link", "named pipe"), ("socket", "socket"), ("/dev/null", "device")]:
        with pytest.raises(UserError, match=f"data.corpus {path}: it is a {kind}"):
            open_user_file(path, what="data.corpus")


@pytest.mark.skipif(os.name == "nt", reason="there are no pipes with a name on Windows")
def test_a_pipe_that_takes_a_files_place_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo("pipe")
    regular = Path("a.txt").stat()
    monkeypatch.setattr(Path, "stat", lambda *_, **__: regular)
    done = threading.Event()
    threading.Thread(target=lambda: (open_user_file("pipe", what="x").close(), done.set()), daemon=True).start()
    assert done.wait(5)


def test_sizes() -> None:
    with pytest.raises(UserError, match="4 bytes, more than the 3"):
        read_text("a.txt", what="--config", limit=3)
    assert read_text("a.txt", what="--config", limit=4) == "text"
    if Path("/proc/cpuinfo").exists():  # Its size is 0.
        with pytest.raises(UserError, match="more than the 3 bytes"):
            read_text("/proc/cpuinfo", what="--config", limit=3)


def test_a_link_and_a_byte_order_mark_are_read_through() -> None:
    Path("marked").write_bytes(b"\xef\xbb\xbfname: x")
    Path("link").symlink_to("marked")
    assert read_text("link", what="--config", limit=100) == "name: x"


def test_bytes_that_are_not_utf_8_are_counted() -> None:
    Path("latin").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="--config latin: byte 3 is not UTF-8"):
        read_text("latin", what="--config", limit=100)


@pytest.mark.parametrize("given", ["private/file", "private/*.txt"])
def test_what_may_not_be_looked_at_is_refused_by_name(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: bool) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UserError) as caught:
        user_path(given, what="--config")
    assert str(caught.value) == f"--config {given}: Permission denied"


@pytest.mark.skipif(os.name == "nt", reason="there are no modes on Windows")
def test_a_folder_that_may_only_be_listed_is_refused_by_name() -> None:
    # Not below tmp_path, which is its owner's alone.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "listed"
        (folder / "a" / "version_0").mkdir(parents=True)
        (folder / "a.txt").write_text("text")
        Path(name).chmod(0o755)
        folder.chmod(0o444)
        done = subprocess.run([sys.executable, "-c", LOOKS, folder], capture_output=True, text=True, check=False)
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 6
    assert all(line.endswith(": Permission denied") and str(folder) in line for line in said), said


LOOKS = """
import os, sys
from pathlib import Path
from tinytf.data.sources import find_files
from tinytf.data.tokenizer import tokenizer_from_file
from tinytf.errors import UserError
from tinytf.export import manifest
from tinytf.run.directory import resolve_checkpoint

if os.geteuid() == 0:
    os.seteuid(65534)  # Modes are no hindrance to root. After the imports, which may be in a folder of its own.
folder = Path(sys.argv[1])
for look, given in (
    (lambda path: find_files(path, folder), folder),
    (lambda path: find_files(path, folder), folder / "*.txt"),
    (tokenizer_from_file, folder / "tokenizer.json"),
    (resolve_checkpoint, folder / "a.ckpt"),
    (lambda root: resolve_checkpoint("best", root=root), folder),
    (lambda path: manifest.read(Path(path)), folder),
):
    try:
        look(str(given))
    except UserError as error:
        print(error)
"""
