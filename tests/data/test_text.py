"""What a corpus may be, and one clear line for everything it may not be."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.shards import serve
from tinytf.data import documents as documents_module
from tinytf.data.documents import read_blocks, scan, text_documents
from tinytf.data.sources.addresses import fetch
from tinytf.errors import UserError

TEXT = "Grüße, \ufeffWelt\r\n👋🏽 und\x00so fort\n" * 50
SUM = hashlib.sha256(TEXT.encode()).hexdigest()


def whole(corpus: str | Path, cache: Path) -> list[str]:
    return ["".join(read_blocks(document)) for document in text_documents(str(corpus), cache)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of ``tmp_path`` and the list of what was fetched from it."""
    with serve(tmp_path) as served:
        yield served


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64, 1 << 20])
def test_blocks_join_to_the_text_wherever_they_cut_a_character(
    file: Path, tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "BLOCK", block)
    assert whole(file, tmp_path) == [TEXT]
    text = scan(str(file), tmp_path)
    assert (text.sha256, text.n_bytes) == (SUM, len(TEXT.encode()))
    assert "".join(map(chr, text.code_points)) == "".join(sorted(set(TEXT)))


def test_python_docs_need_nothing(tmp_path: Path) -> None:
    (text,) = whole("python-docs", tmp_path)
    assert len(text) > 400_000


def test_a_folder_is_its_text_files_in_order(tmp_path: Path) -> None:
    for name, text in {"b.txt": "B", "a/z.md": "Z", "a/b/c.txt": "C", "code.py": "no", "empty.txt": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert whole(tmp_path, tmp_path) == ["C", "Z", "B", ""]
    assert whole(f"{tmp_path}/**/*.txt", tmp_path) == ["C", "B", ""]
    assert whole(f"{tmp_path}/*.py", tmp_path) == ["no"]


def test_a_file_with_a_pattern_in_its_name_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("this one")
    assert whole(tmp_path / "a[1].txt", tmp_path) == ["this one"]


def test_the_sum_of_many_documents_depends_on_their_order_and_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    before = scan(str(tmp_path), tmp_path)
    (tmp_path / "a.txt").write_text("two")
    (tmp_path / "b.txt").write_text("one")
    assert before.n_bytes == 6
    assert scan(str(tmp_path), tmp_path).sha256 != before.sha256


def test_a_url_is_fetched_once(file: Path, server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = server
    cache = tmp_path / "cache"
    for _ in range(2):
        assert whole(f"{address}/text.txt#sha256={SUM}", cache) == [TEXT]
    assert asked == ["GET /text.txt"]
    assert whole(f"{file.as_uri()}#sha256={SUM.upper()}", tmp_path / "other") == [TEXT]


def test_a_damaged_download_is_fetched_again(file: Path, server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = server
    kept = fetch(f"{address}/text.txt#sha256={SUM}", tmp_path / "cache")
    kept.write_bytes(TEXT.encode()[:-1])
    assert whole(f"{address}/text.txt#sha256={SUM}", tmp_path / "cache") == [TEXT]
    assert asked == ["GET /text.txt"] * 2


def test_another_checksum_keeps_nothing(file: Path, server: tuple[str, list[str]], tmp_path: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(UserError, match=rf"its sha256 is {SUM}, not {wrong} as given"):
        fetch(f"{server[0]}/text.txt#sha256={wrong}", tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_an_address_that_does_not_answer(server: tuple[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/nope\.txt: there is no such file"):
        fetch(f"{server[0]}/nope.txt#sha256={SUM}", tmp_path)
    with pytest.raises(UserError, match=r"could not be fetched"):
        fetch(f"http://127.0.0.1:1/nope.txt#sha256={SUM}", tmp_path)


WRONG = {
    "missing": ("nope.txt", r"no such file or folder; the corpora by name are shakespeare, .*python-docs"),
    "empty": ("empty.txt", r"1 file with no text at all"),
    "latin 1": ("latin.txt", r"latin\.txt:2: it is not UTF-8 \(0xe9 at byte 4"),
    "far in": ("far.txt", r"far\.txt:1049: it is not UTF-8 \(0xff at byte 1048577"),
    "cut short": ("short.txt", r"short\.txt:1: it is not UTF-8 \(0xf0 at byte 2, unexpected end of data"),
    "folder without text": ("folder", r"the folder holds no \*\.txt or \*\.md file"),
    "pattern without match": ("*.nope", r"the pattern matches no file"),
    "URL without a sum": ("http://localhost/a.txt", r"http://localhost/a\.txt#sha256=<"),
    "URL with half a sum": ("http://localhost/a.txt#sha256=abc", r"64 hexadecimal digits"),
}


@pytest.mark.parametrize(("corpus", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_used_is_one_clear_line(corpus: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes("\ncafé au lait".encode("latin-1"))
    (tmp_path / "far.txt").write_bytes((b"x" * 999 + b"\n") * 1048 + b"x" * 577 + b"\xff" + b"y" * 9)
    (tmp_path / "short.txt").write_bytes(b"ab" + "👋".encode()[:3])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        scan(corpus if "://" in corpus else str(tmp_path / corpus), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bar_of_bytes_leaves_no_semaphore_if_the_process_is_killed() -> None:
    # Under the start method that is Linux's own from Python 3.14 on, a semaphore of tqdm outlives a kill.
    code = """
import multiprocessing, os, signal
multiprocessing.set_start_method("forkserver")
from tinytf.data.sources.files import byte_progress
with byte_progress("reading", 10):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert "leaked semaphore" not in ended.stderr
