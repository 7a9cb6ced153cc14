"""Files far away, and data sets by name: what is read is what is there, and it is read once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.data.shards import documents, held, served, settings, write_jsonl
from tinytf.data.prepare import prepare
from tinytf.data.remote import counted
from tinytf.errors import UserError

TEXTS = documents(120)


@pytest.fixture
def bucket() -> Iterator[str]:
    """An address of fsspec's file system in memory, which stands for any."""
    system = fsspec.filesystem("memory")
    yield "memory://bucket"
    system.store.clear()


def put(address: str, raw: bytes) -> None:
    with fsspec.open(address, "wb") as file:
        file.write(raw)


def test_a_remote_folder_or_pattern_gives_the_store_of_the_local_one(bucket: str, tmp_path: Path) -> None:
    for name, texts in (("a.jsonl", TEXTS[:50]), ("b.jsonl.gz", TEXTS[50:90]), ("c/d.jsonl", TEXTS[90:])):
        path = write_jsonl(tmp_path / "in" / name, texts)
        put(f"{bucket}/in/{name}", path.read_bytes())
    put(f"{bucket}/in/notes.csv", b"not text")
    local = prepare(settings(tmp_path / "in", tmp_path / "cache"))
    for corpus in (f"{bucket}/in", f"{bucket}/in/**/*.jsonl*"):
        assert prepare(settings(corpus, tmp_path / "cache")).store.folder == local.store.folder


def test_a_file_that_changes_far_away_is_seen(bucket: str, tmp_path: Path) -> None:
    for texts in (TEXTS, TEXTS[1:]):
        put(f"{bucket}/a.jsonl", write_jsonl(tmp_path / "a.jsonl", texts).read_bytes())
        assert prepare(settings(f"{bucket}/a.jsonl", tmp_path / "cache")).fingerprint["documents"] == len(texts)


def test_one_remote_text_is_brought_here_once(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(f"{bucket}/a.txt", "".join(TEXTS).encode())
    (tmp_path / "a.txt").write_text("".join(TEXTS))
    local = prepare(settings(tmp_path / "a.txt", tmp_path / "cache"))
    assert prepare(settings(f"{bucket}/a.txt", tmp_path / "cache")).store.folder == local.store.folder
    monkeypatch.setattr("tinytf.data.files.open_remote", lambda _: pytest.fail("fetched again"))
    assert prepare(settings(f"{bucket}/a.txt", tmp_path / "cache")).store.folder == local.store.folder


def test_shards_of_a_plain_web_server(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")

    for number in range(3):
        write_jsonl(tmp_path / f"in/{number:02}.jsonl.zst", TEXTS[number * 40 : number * 40 + 40])
    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "in/p.parquet")
    with served(tmp_path / "in") as (address, asked):
        done = prepare(settings(f"{address}/{{00..02}}.jsonl.zst", tmp_path / "cache"))
        assert sorted(held(done, "train") + held(done, "val")) == sorted(TEXTS)
        assert sorted(asked) == [f"GET /{number:02}.jsonl.zst" for number in range(3)]
        again = prepare(settings(f"{address}/{{00..02}}.jsonl.zst", tmp_path / "cache"))
        assert again.fingerprint == done.fingerprint
        assert len(asked) == 3
        assert prepare(settings(f"{address}/p.parquet?key=1", tmp_path / "cache")).fingerprint["documents"] == 120
        with pytest.raises(UserError, match=r"/09\.jsonl: there is no such file"):
            prepare(settings(f"{address}/09.jsonl", tmp_path / "cache"))
    with pytest.raises(UserError, match=r"jsonl\.zst: it could not be fetched \(Cannot connect"):
        prepare(settings(f"{address}/{{00..02}}.jsonl.zst", tmp_path / "cache"))


def test_a_download_that_breaks_off_is_found_out(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(f"{bucket}/a.txt", b"some text")
    monkeypatch.setattr("tinytf.data.remote._size_and_version", lambda *_: (12, "v1"))
    with pytest.raises(UserError, match=r"a\.txt: 9 of its 12 bytes came: run again"):
        prepare(settings(f"{bucket}/a.txt", tmp_path / "cache"))


def test_counting() -> None:
    assert counted("a-{08..10}.x") == ["a-08.x", "a-09.x", "a-10.x"]
    assert counted("{0..1}/{1..2}") == ["0/1", "0/2", "1/1", "1/2"]
    assert counted("a{b}") == ["a{b}"]


def test_a_file_system_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(address: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(UserError, match=r"Install s3fs to access S3; .* pip install 'tinytf\[remote\]'"):
        prepare(settings("s3://bucket/a.jsonl", tmp_path / "cache"))


def test_nothing_there(bucket: str, tmp_path: Path) -> None:
    put(f"{bucket}/in/notes.csv", b"not text")
    with pytest.raises(UserError, match=r"there is nothing there that is text, \.jsonl or \.parquet"):
        prepare(settings(f"{bucket}/in", tmp_path / "cache"))


def test_a_data_set_by_name_is_streamed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for number in range(3):
        write_jsonl(tmp_path / f"set/train-{number}.jsonl", TEXTS[number * 40 : number * 40 + 40], field="body")
    done = prepare(settings(f"hf://{tmp_path}/set?split=train", tmp_path / "cache", text_field="body"))
    assert sorted(held(done, "train") + held(done, "val")) == sorted(TEXTS)
    local = prepare(settings(tmp_path / "set", tmp_path / "cache", text_field="body"))
    assert set(held(local, "val")) == set(held(done, "val"))
    with pytest.raises(UserError, match=r"its fields are 'body', 'other', not 'text': set --data\.text_field"):
        prepare(settings(f"hf://{tmp_path}/set", tmp_path / "cache"))
    with pytest.raises(UserError, match=r"corpus hf://.*Bad split: nope\. Available splits: \[.train.\]"):
        prepare(settings(f"hf://{tmp_path}/set?split=nope", tmp_path / "cache"))
    with pytest.raises(UserError, match=r"'spilt' is no option of hf://; there are config, split, revision"):
        prepare(settings(f"hf://{tmp_path}/set?spilt=train", tmp_path / "cache"))


@pytest.mark.parametrize(
    ("module", "corpus", "message"),
    [
        ("datasets", "hf://{0}?revision=" + "0" * 40, r"pip install 'tinytf\[datasets\]'"),
        ("zstandard", "{0}/a.jsonl.zst", r"a\.jsonl\.zst: \.zst needs the extra corpora: pip install 'tinytf\[corpora"),
        ("pyarrow", "{0}/a.parquet", r"a\.parquet: \.parquet needs the extra corpora"),
    ],
)
def test_a_missing_extra_is_named(
    module: str, corpus: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl.zst", "a.parquet"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=message):
        prepare(settings(corpus.format(tmp_path), tmp_path / "cache"))
