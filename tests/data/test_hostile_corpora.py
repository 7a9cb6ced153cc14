"""Corpora and tokenizers of strangers: whatever they are, one line, in bounded time and memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.data.shards import config_of, documents, serve, texts_of, write_jsonl
from tinytf.data import TextDataModule
from tinytf.data import documents as documents_file
from tinytf.data.build import prepare
from tinytf.data.config import CorpusConfig
from tinytf.data.documents import read_documents, shards_of
from tinytf.data.examples.records import Records
from tinytf.data.sources import addresses, files
from tinytf.data.sources.files import local_file
from tinytf.data.tokenizer import END_OF_TEXT, character_tokenizer, encode, tokenizer_from_file
from tinytf.errors import UserError
from tinytf.utils.text import public

TEXT = "It was the best of times, it was the worst of times.\n" * 40
TEXTS = documents(60)
NO_PATHS = [
    "",
    " ",
    "\0",
    "a\0b",
    "x" * 5000,
    "a/" * 3000,
    "~nosuchuser/x",
    "~nosuchuser",
    "\n",
    "\u202e",
    "/dev/null/x",
]
DEVICES = ["/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/proc/self/fd", "/proc/kmsg"]


def refused(**changes: object) -> str:
    """The one line that a config is refused with."""
    with pytest.raises(UserError) as caught:
        prepare(CorpusConfig(**{"prepare_processes": 1, **changes}))  # type: ignore[arg-type]
    assert str(caught.value)
    assert len(str(caught.value)) < 20_000
    return str(caught.value)


@pytest.mark.parametrize("key", ["corpus", "val_corpus", "test_corpus", "tokenizer", "cache_dir"])
@pytest.mark.parametrize("path", NO_PATHS, ids=lambda path: ascii(path[:12]))
def test_what_is_no_path_is_one_line(key: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    if key == "cache_dir" and path in (" ", "\n", "\u202e"):
        pytest.skip("a folder may be called so")
    refused(**{"corpus": "text.txt", "cache_dir": str(tmp_path / "cache"), key: path})


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "dangling link", "loop", *DEVICES])
@pytest.mark.parametrize("name", ["a", "a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet", "tokenizer.json"])
def test_only_regular_files_are_opened(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))
    else:
        path.symlink_to({"dangling link": "nowhere", "loop": name}.get(kind, kind))
    key = "tokenizer" if name == "tokenizer.json" else "corpus"
    refused(**{"corpus": "python-docs", "cache_dir": str(tmp_path / "cache"), key: str(path)})


@pytest.mark.parametrize(
    "deep", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000, '{"text": ' + "9" * 5000 + "}"]
)
def test_json_that_is_deep_or_large_is_one_line(deep: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(deep + "\n")
    assert "a.jsonl:1: " in refused(corpus=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path))
    (tmp_path / "t.json").write_text(deep)
    with pytest.raises(UserError, match=r"t\.json"):
        tokenizer_from_file(tmp_path / "t.json")


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_file, "LONGEST_LINE", 1 << 16)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"a" * (1 << 26)))
    assert "a.jsonl.gz:1: the line has more than 65,536 bytes" in refused(
        corpus=str(tmp_path / "a.jsonl.gz"), cache_dir=str(tmp_path)
    )


def test_a_small_parquet_file_of_much_text_takes_little_memory(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    from pyarrow import parquet

    # One text of 256 KiB, and 1,200 references to it: a row group decoded whole takes 300 MB.
    table = pyarrow.table({"text": pyarrow.array(["x" * (1 << 18)]).dictionary_encode().take([0] * 1200)})
    parquet.write_table(table, tmp_path / "a.parquet", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    before = pyarrow.default_memory_pool().max_memory()
    (shard,) = shards_of(local_file(tmp_path / "a.parquet"))
    assert sum(1 for _ in read_documents(shard, Records("text"))) == 1200
    assert pyarrow.default_memory_pool().max_memory() < max(before, 150 << 20)


@contextmanager
def trickle(seconds: float, block: bytes, headers: bytes = b"") -> Iterator[str]:
    """The address of a server that sends a block every so many seconds, without end."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection:
            asked = connection.recv(4096)
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nETag: x\r\n" + headers + b"\r\n")
                while not asked.startswith(b"HEAD") and not ended.wait(seconds):
                    connection.sendall(block)
            except OSError:
                return

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.close()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt#sha256=" + "0" * 64])
def test_a_server_that_sends_a_byte_at_a_time_is_given_up(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SILENCE", 1)
    start = time.monotonic()
    with trickle(0.05, b" ") as address:
        message = refused(corpus=f"{address}/{name}", cache_dir=str(tmp_path))
    assert "could not be fetched" in message or "damaged" in message
    assert time.monotonic() - start < 20


def test_a_server_that_is_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SILENCE", 1)
    with trickle(60, b"") as address:
        assert "could not be fetched" in refused(corpus=f"{address}/a.jsonl", cache_dir=str(tmp_path))


@pytest.mark.parametrize("headers", [b"", b"Content-Length: 1000000000000\r\n"])
def test_a_download_without_end_is_given_up(headers: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "LARGEST_UNKNOWN", 1 << 20)
    with trickle(0, b"x" * 4096, headers) as address:
        message = refused(corpus=f"{address}/a.txt#sha256={'0' * 64}", cache_dir=str(tmp_path))
    assert "more than 1,048,576 bytes came" in message
    assert not [path for path in (tmp_path / "downloads").rglob("*") if path.is_file()]


@pytest.mark.parametrize("ranges", ["{0..99999999}", "{0..999}{0..999}", "{0..9}" * 9, "{0..99999999999999999999}"])
def test_ranges_are_counted_before_they_are_written_out(ranges: str, tmp_path: Path) -> None:
    start = time.monotonic()
    refused(corpus=f"http://127.0.0.1:1/{ranges}.jsonl", cache_dir=str(tmp_path))
    assert time.monotonic() - start < 5


def tar(raw: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(raw)
        archive.addfile(entry, io.BytesIO(raw))
    return buffer.getvalue()


def zipped(raw: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", raw)
    return buffer.getvalue()


RAW = TEXT.encode()
NEITHER = {
    "a.json": (b'[{"text": "a"}]', r"\.json files are neither .* one JSON object per line into a \.jsonl"),
    "a.JSON": (b'[{"text": "a"}]', r"\.json files are neither"),
    "a.json.gz": (gzip.compress(b"{}"), r"\.json files are neither"),
    "a.tar": (tar(RAW), r"\.tar files are neither text nor records; give what is in it"),
    "a.tar.gz": (gzip.compress(tar(RAW)), r"\.tar files are neither"),
    "a.TGZ": (gzip.compress(tar(RAW)), r"\.tgz files are neither"),
    "a.zip": (zipped(RAW), r"\.zip files are neither"),
    "a.txt": (gzip.compress(RAW), r"by its content it is a \.gz file: name it so"),
    "b.txt": (zipped(RAW), r"by its content it is a \.zip file: give the text that is in it"),
    "b.jsonl": (lzma.compress(RAW), r"by its content it is a \.xz file"),
    "c": (bz2.compress(RAW), r"by its content it is a \.bz2 file"),
    "c.txt": (b"PAR1\x15\x04" + RAW, r"by its content it is a \.parquet file"),
}


@pytest.mark.parametrize("name", NEITHER)
def test_what_is_neither_text_nor_records_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = NEITHER[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: .*{message}"):
        prepare(config_of(tmp_path / name, tmp_path / "cache"))


@pytest.mark.parametrize(
    "name",
    ["a.ndjson", "a.JSONL", "a.NdJson", "a.jsonl.xz", "a.jsonl.bz2", "a.JSONL.GZ", "a.txt.xz", "a.TXT.BZ2", "a.md.gz"],
)
def test_endings_are_read_in_any_case(name: str, tmp_path: Path) -> None:
    raw = write_jsonl(tmp_path / "plain.jsonl", TEXTS).read_bytes() if "json" in name.lower() else RAW
    pack = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}.get(name.lower().rpartition(".")[2], bytes)
    (tmp_path / name).write_bytes(pack(raw))
    prepared = prepare(config_of(tmp_path / name, tmp_path / "cache"))
    if raw is RAW:
        assert prepared.store.bytes["train"] + prepared.store.bytes["val"] == len(RAW)
    else:
        assert sorted(texts_of(prepared, "train") + texts_of(prepared, "val")) == sorted(TEXTS)


def test_hidden_files_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.txt", ".git/b.txt", "c/.ipynb_checkpoints/d-checkpoint.md", ".e.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(TEXT)
    prepared = prepare(config_of(tmp_path / "in", tmp_path / "cache"))
    assert prepared.fingerprint["bytes"] == len(RAW)
    assert caplog.text.count("3 hidden files, or files in hidden folders, are left out") == 1


def test_a_record_in_a_later_shard_is_named_by_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with path.open("a") as file:
        file.write("[]\n")
    monkeypatch.setattr(documents_file, "SHARD_BYTES", 500)
    with pytest.raises(UserError, match=rf"a\.jsonl:{len(TEXTS) + 1}: it is a list"):
        prepare(config_of(path, tmp_path / "cache"))
    known = character_tokenizer("".join(TEXTS[:-1]).replace("I", ""), end_of_text=True)
    first = next(number for number, text in enumerate(TEXTS, 1) if "I" in text)
    with pytest.raises(UserError, match=rf"in line 1 of .*a\.jsonl:{first} \("):
        prepare(config_of(path, tmp_path / "cache"), known)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_end_of_text_written_in_a_text_is_text_at_every_use(kind: str, tmp_path: Path) -> None:
    text = f"one{END_OF_TEXT}two {END_OF_TEXT}\n" * 50
    (tmp_path / "a.txt").write_text(text)
    first, second = (
        prepare(config_of(tmp_path / "a.txt", tmp_path / name, tokenizer=kind, vocab_size=262)) for name in "ab"
    )
    for prepared in (first, second, prepare(config_of(tmp_path / "a.txt", tmp_path / "a"), first.tokenizer)):
        ids = [*prepared.store.split("train").tolist(), *prepared.store.split("val").tolist()]
        uses = [prepared.tokenizer.encode(text, add_special_tokens=False).ids for _ in range(2)]
        assert uses == [encode(first.tokenizer, text)] * 2
        assert prepared.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_an_address_without_its_credential_is_found_by_fingerprint(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", TEXTS)
    cache = tmp_path / "cache"
    with serve(tmp_path / "in") as (address, _):
        corpus = address.replace("//", "//me:sesame@") + "/a.jsonl?key=sesame"
        first = TextDataModule(corpus=corpus, cache_dir=str(cache), prepare_processes=1, seq_len=4)
        fingerprint = first.fingerprint
    assert "sesame" not in json.dumps(fingerprint)
    assert not [path for path in cache.rglob("*") if "sesame" in path.name]
    assert not [path for path in cache.rglob("*") if path.is_file() and b"sesame" in path.read_bytes()]

    def resumed(folder: Path, **changes: object) -> TextDataModule:
        data = TextDataModule(corpus=public(corpus), cache_dir=str(folder), seq_len=4, **changes)
        data.use_tokenizer(first.tokenizer.to_str(), fingerprint)
        return data

    assert resumed(cache).split("train").tolist() == first.split("train").tolist()
    for data in (resumed(tmp_path / "other"), resumed(cache, val_fraction=0.3)):
        with pytest.raises(UserError, match="give the whole address again"):
            data.prepare_data()


def test_a_file_system_without_locks_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr("fcntl.lockf", refuse)
    for corpus in (write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "a.txt"):
        (tmp_path / "a.txt").write_text(TEXT)
        prepare(config_of(corpus, tmp_path / "cache"))
        assert "no lock can be taken" in caplog.text
        caplog.clear()
