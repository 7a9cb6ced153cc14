"""Files far away, and data sets by name: what is read is what is there, and it is read once."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.data.shards import config_of, documents, serve, texts_of, write_jsonl
from tinytf.data.build import prepare
from tinytf.data.sources import addresses
from tinytf.data.sources.addresses import expand_range
from tinytf.errors import UserError

TEXTS = documents(120)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address of fsspec's file system in memory, which stands for any."""
    monkeypatch.setattr(addresses, "SCHEMES", (*addresses.SCHEMES, "memory"))
    system = fsspec.filesystem("memory")
    yield "memory://bucket"
    system.store.clear()


def put(address: str, raw: bytes) -> None:
    with fsspec.open(address, "wb") as file:
        file.write(raw)


def test_a_remote_folder_or_pattern_gives_the_store_of_the_local_one(bucket: str, tmp_path: Path) -> None:
    for name, texts in (("a.jsonl", TEXTS[:50]), ("b.jsonl.gz", TEXTS[50:90]), ("c/d.jsonl.zst", TEXTS[90:])):
        path = write_jsonl(tmp_path / "in" / name, texts)
        put(f"{bucket}/in/{name}", path.read_bytes())
    put(f"{bucket}/in/notes.csv", b"not text")
    local = prepare(config_of(tmp_path / "in", tmp_path / "cache"))
    for corpus in (f"{bucket}/in", f"{bucket}/in/**/*.jsonl*"):
        assert prepare(config_of(corpus, tmp_path / "cache")).store.folder == local.store.folder


def test_a_file_that_changes_far_away_is_seen(bucket: str, tmp_path: Path) -> None:
    for texts in (TEXTS, TEXTS[1:]):
        put(f"{bucket}/a.jsonl", write_jsonl(tmp_path / "a.jsonl", texts).read_bytes())
        assert prepare(config_of(f"{bucket}/a.jsonl", tmp_path / "cache")).fingerprint["documents"] == len(texts)


def test_one_remote_text_is_brought_here_once(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(f"{bucket}/a.txt", "".join(TEXTS).encode())
    (tmp_path / "a.txt").write_text("".join(TEXTS))
    local = prepare(config_of(tmp_path / "a.txt", tmp_path / "cache"))
    assert prepare(config_of(f"{bucket}/a.txt", tmp_path / "cache")).store.folder == local.store.folder
    monkeypatch.setattr("tinytf.data.sources.addresses._copy", lambda *_: pytest.fail("fetched again"))
    assert prepare(config_of(f"{bucket}/a.txt", tmp_path / "cache")).store.folder == local.store.folder


def test_shards_of_a_plain_web_server(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    for number in range(3):
        write_jsonl(tmp_path / f"in/{number:02}.jsonl.zst", TEXTS[number * 40 : number * 40 + 40])
    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "in/p.parquet")
    with serve(tmp_path / "in") as (address, asked):
        prepared = prepare(config_of(f"{address}/{{00..02}}.jsonl.zst", tmp_path / "cache"))
        assert sorted(texts_of(prepared, "train") + texts_of(prepared, "val")) == sorted(TEXTS)
        # The first once more, for its first record: what it holds, all are read as.
        assert sorted(asked) == [f"GET /{number:02}.jsonl.zst" for number in (0, 0, 1, 2)]
        again = prepare(config_of(f"{address}/{{00..02}}.jsonl.zst", tmp_path / "cache"))
        assert again.fingerprint == prepared.fingerprint
        assert len(asked) == 4
        assert prepare(config_of(f"{address}/p.parquet?key=1", tmp_path / "cache")).fingerprint["documents"] == 120
        with pytest.raises(UserError, match=r"/09\.jsonl: there is no such file"):
            prepare(config_of(f"{address}/09.jsonl", tmp_path / "cache"))
    with pytest.raises(UserError, match=r"jsonl\.zst: it could not be fetched \(Cannot connect"):
        prepare(config_of(f"{address}/{{00..02}}.jsonl.zst", tmp_path / "cache"))


def test_a_download_that_breaks_off_is_found_out(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(f"{bucket}/a.txt", b"some text")
    monkeypatch.setattr("tinytf.data.sources.list_remote", lambda address: [(address, 12, "v1")])
    with pytest.raises(UserError, match=r"a\.txt: 9 of its 12 bytes came: run again"):
        prepare(config_of(f"{bucket}/a.txt", tmp_path / "cache"))
    assert not [path for path in (tmp_path / "cache/downloads").rglob("*") if path.is_file()]


def test_a_range_counts() -> None:
    assert expand_range("a-{08..10}.x") == ["a-08.x", "a-09.x", "a-10.x"]
    assert expand_range("{0..1}/{1..2}") == ["0/1", "0/2", "1/1", "1/2"]
    assert expand_range("a{b}") == ["a{b}"]


def test_a_file_system_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(address: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(UserError, match=r"Install s3fs to access S3; .* pip install 'tinytf\[remote\]'"):
        prepare(config_of("s3://bucket/a.jsonl", tmp_path / "cache"))


def test_a_bug_of_ours_is_no_failed_address(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(f"{bucket}/a.jsonl", write_jsonl(tmp_path / "a.jsonl", TEXTS).read_bytes())
    monkeypatch.setattr(fsspec.implementations.memory.MemoryFile, "read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(config_of(f"{bucket}/a.jsonl", tmp_path / "cache"))


@pytest.mark.parametrize("address", ["nope://a/b.jsonl", "http://[::1/a.jsonl", "http://[::1/a#b"])
def test_what_is_no_address_is_one_line(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it is no address"):
        prepare(config_of(address, tmp_path / "cache"))


@pytest.mark.parametrize(
    "address",
    [
        "reference://::file:///{0}/refs.json",
        "dir://::file:///{0}",
        "zip://*.txt::file:///{0}/a.zip",
        "github://owner:name@main/a.txt",
        "local://{0}/a.txt",
        "ssh://host/a.txt",
        "data://,some text",
        "memory://a.txt",
        "https://localhost/a.zip::file:///{0}/a.txt",
        "file://{0}/a.txt::zip://x#sha256=" + "0" * 64,
    ],
)
def test_other_file_systems_are_not_reached(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("".join(TEXTS))
    for opener in ("open", "core.url_to_fs"):
        monkeypatch.setattr(f"fsspec.{opener}", lambda *_, **__: pytest.fail("reached"))
    with pytest.raises(UserError, match=r"it is no address that can be used: .* not read; there are .*s3://, gs://"):
        prepare(config_of(address.format(tmp_path), tmp_path / "cache"))


def test_a_file_that_a_server_names_as_a_chain(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        addresses, "_entries", lambda _: [(f"{bucket}/a::file://{tmp_path}/a.jsonl", {"size": 1, "ETag": "x"})]
    )
    with pytest.raises(UserError, match="chained by :: are not read"):
        prepare(config_of(f"{bucket}/in", tmp_path / "cache"))


def test_a_local_name_with_two_colons_is_no_chain(tmp_path: Path) -> None:
    raw = "".join(TEXTS).encode()
    (tmp_path / "a::b.txt").write_bytes(raw)
    digest = hashlib.sha256(raw).hexdigest()
    plain = prepare(config_of(tmp_path / "a::b.txt", tmp_path / "cache"))
    address = f"file://{tmp_path}/a%3A%3Ab.txt#sha256={digest}"
    assert prepare(config_of(address, tmp_path / "cache")).store.folder == plain.store.folder


@pytest.mark.parametrize(
    "address", ["file://[x", "file:///a%00b.txt", "https://localhost/a%00b", "file:///" + "a" * 300]
)
def test_an_address_of_no_file_is_one_line(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Invalid IPv6 URL|null|too long"):
        prepare(config_of(f"{address}#sha256={'0' * 64}", tmp_path / "cache"))


def test_nothing_there(bucket: str, tmp_path: Path) -> None:
    put(f"{bucket}/in/notes.csv", b"not text")
    with pytest.raises(UserError, match=r"there is nothing there that is text, \.jsonl or \.parquet"):
        prepare(config_of(f"{bucket}/in", tmp_path / "cache"))


def test_a_data_set_by_name_is_streamed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for number in range(3):
        write_jsonl(tmp_path / f"set/train-{number}.jsonl", TEXTS[number * 40 : number * 40 + 40], field="body")
    prepared = prepare(config_of(f"hf://{tmp_path}/set?split=train", tmp_path / "cache", text_field="body"))
    assert sorted(texts_of(prepared, "train") + texts_of(prepared, "val")) == sorted(TEXTS)
    local = prepare(config_of(tmp_path / "set", tmp_path / "cache", text_field="body"))
    assert set(texts_of(local, "val")) == set(texts_of(prepared, "val"))
    with pytest.raises(UserError, match=r"its fields are 'body', 'other', not 'text': set --data\.text_field"):
        prepare(config_of(f"hf://{tmp_path}/set", tmp_path / "cache"))
    with pytest.raises(UserError, match=r"corpus hf://.*Bad split: nope\. Available splits: \[.train.\]"):
        prepare(config_of(f"hf://{tmp_path}/set?split=nope", tmp_path / "cache"))
    with pytest.raises(UserError, match=r"'spilt' is no option of hf://; there are config, split, revision"):
        prepare(config_of(f"hf://{tmp_path}/set?spilt=train", tmp_path / "cache"))


@pytest.mark.parametrize(
    ("module", "corpus", "message"),
    [
        ("datasets", "hf://{0}?revision=" + "0" * 40, r"pip install 'tinytf\[corpora\]'"),
        ("datasets", "{0}/a.parquet", r"a\.parquet: .*pip install 'tinytf\[corpora\]'"),
        ("zstd", "{0}/a.jsonl.zst", r"a\.jsonl\.zst: \.zst needs the extra corpora: pip install 'tinytf\[corpora"),
    ],
)
def test_a_missing_extra_is_named(
    module: str, corpus: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl.zst", "a.parquet"):
        (tmp_path / name).write_bytes(b"some")
    if module == "zstd":
        monkeypatch.delitem(fsspec.compression.compr, "zstd", raising=False)
    else:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=message):
        prepare(config_of(corpus.format(tmp_path), tmp_path / "cache"))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_remote_file_that_is_cut_short_is_damaged(ending: str, bucket: str, tmp_path: Path) -> None:
    raw = write_jsonl(tmp_path / f"a.jsonl{ending}", TEXTS).read_bytes()
    put(f"{bucket}/a.jsonl{ending}", raw[:-20])
    with pytest.raises(UserError, match=rf"bucket/a\.jsonl{ending}: it is damaged or cut short"):
        prepare(config_of(f"{bucket}/a.jsonl{ending}", tmp_path / "cache"))
