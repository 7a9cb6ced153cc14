"""Corpora of documents: each in one split for ever, in the order of the files, whatever the processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from tests.data.shards import compress, config_of, documents, serve, texts_of, write_jsonl
from tinytf.data import documents as documents_file
from tinytf.data.build import prepare
from tinytf.data.documents import shards_of
from tinytf.data.examples.records import Records
from tinytf.data.sources.files import local_file
from tinytf.data.splits import SplitFractions
from tinytf.data.tokenizer import byte_pair_tokenizer, character_tokenizer
from tinytf.data.tokens import shards as shards_file
from tinytf.data.tokens.shards import ShardTokenizer
from tinytf.errors import RunError, UserError

TEXTS = documents(300)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    byte_pair_tokenizer(iter(TEXTS), 300).save(str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["char", "file"])
def test_every_document_is_in_one_split_with_a_token_after_it(kind: str, bpe: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    prepared = prepare(
        config_of(path, tmp_path / "cache", tokenizer=bpe if kind == "file" else kind, test_fraction=0.2)
    )
    parts = {name: texts_of(prepared, name) for name in ("train", "val", "test")}
    assert sorted(chain.from_iterable(parts.values())) == sorted(TEXTS)
    for name, share in (("train", 210), ("val", 30), ("test", 60)):
        assert abs(len(parts[name]) - share) < 30
        assert prepared.store.bytes[name] == sum(len(text.encode()) for text in parts[name])
        assert prepared.fingerprint["split_documents"][name] == len(parts[name])
    assert [path for path in (tmp_path / "cache/shards").rglob("*") if path.is_file()] == []


def test_documents_stand_in_the_order_of_the_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/b.jsonl", TEXTS[150:])
    write_jsonl(tmp_path / "in/a.jsonl", TEXTS[:150])
    one, other = (prepare(config_of(tmp_path / "in", tmp_path / name)) for name in ("one", "other"))
    train, val = texts_of(one, "train"), texts_of(one, "val")
    assert train == [text for text in TEXTS if text in train]
    assert val == [text for text in TEXTS if text in val]
    assert (train, val) == (texts_of(other, "train"), texts_of(other, "val"))


@pytest.mark.parametrize("size", [97, 1000])
def test_shards_of_a_file_are_all_of_it(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:60])
    whole = prepare(config_of(path, tmp_path / "whole"))
    monkeypatch.setattr(documents_file, "SHARD_BYTES", size)
    sharded = prepare(config_of(path, tmp_path / "sharded"))
    assert sharded.store.tokens == whole.store.tokens
    assert sharded.store.split("train").tolist() == whole.store.split("train").tolist()


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst"])
def test_a_compressed_file_gives_the_same_store(ending: str, tmp_path: Path) -> None:
    plain = prepare(config_of(write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "cache"))
    compressed = prepare(config_of(write_jsonl(tmp_path / f"p.{ending}", TEXTS), tmp_path / "cache"))
    assert compressed.store.folder == plain.store.folder


def test_parquet_gives_the_documents_of_its_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    from pyarrow import parquet

    table = pyarrow.table({"id": range(300), "body": TEXTS})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=40)
    prepared = prepare(config_of(tmp_path / "a.parquet", tmp_path / "cache", text_field="body"))
    plain = prepare(config_of(write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "cache"))
    for name in ("train", "val"):
        assert texts_of(prepared, name) == texts_of(plain, name)
    with pytest.raises(UserError, match=r"a\.parquet: its fields are 'id', 'body', not 'text': set --data\.text_field"):
        prepare(config_of(tmp_path / "a.parquet", tmp_path / "cache"))


def test_reading_a_file_of_this_disk_asks_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    from pyarrow import parquet

    asked: list[object] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *place, **_: asked.append(place))
    parquet.write_table(pyarrow.table({"text": documents(100)}), tmp_path / "a.parquet")
    prepare(config_of(tmp_path / "a.parquet", tmp_path / "cache"))
    assert not asked


def test_a_damaged_page_of_a_parquet_file_is_one_line(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    from pyarrow import parquet

    noise = random.Random(0)
    table = pyarrow.table({"text": [noise.randbytes(200).hex() for _ in range(400)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 4000] = b"\xff" * 4000
    (tmp_path / "a.parquet").write_bytes(raw)
    with pytest.raises(UserError, match=r"a\.parquet, after row \d+: it is damaged or cannot be read \(") as caught:
        prepare(config_of(tmp_path / "a.parquet", tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_no_document_moves_when_files_are_added(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/m.jsonl", TEXTS)
    before = prepare(config_of(tmp_path / "in", tmp_path / "cache", test_fraction=0.1))
    write_jsonl(tmp_path / "in/a.jsonl", documents(200, seed=1))
    write_jsonl(tmp_path / "in/z/z.jsonl.gz", documents(200, seed=2))
    after = prepare(config_of(tmp_path / "in", tmp_path / "cache", test_fraction=0.1))
    known = set(TEXTS)
    for name in ("train", "val", "test"):
        assert [text for text in texts_of(after, name) if text in known] == texts_of(before, name)
    assert len(texts_of(after, "train")) > len(texts_of(before, "train")) + 250


def test_validation_stays_with_or_without_a_test_split(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    one, other = (prepare(config_of(path, tmp_path / "cache", test_fraction=share)) for share in (0.0, 0.3))
    assert texts_of(one, "val") == texts_of(other, "val")


def test_copies_of_a_document_are_in_one_split(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [text for text in TEXTS for _ in range(3)])
    prepared = prepare(config_of(path, tmp_path / "cache"))
    train, val = texts_of(prepared, "train"), texts_of(prepared, "val")
    assert not set(train) & set(val)
    assert len(train) + len(val) == 900


def test_a_corpus_for_validation_leaves_the_other_whole(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    val = write_jsonl(tmp_path / "b.jsonl", documents(10, seed=5))
    prepared = prepare(config_of(path, tmp_path / "cache", val_corpus=str(val)))
    assert sorted(texts_of(prepared, "train")) == sorted(TEXTS)
    assert sorted(texts_of(prepared, "val")) == sorted(documents(10, seed=5))


def test_text_files_are_documents_where_asked(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS[:50]):
        (tmp_path / f"in/{number % 7}/{number}.txt").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"in/{number % 7}/{number}.txt").write_text(text)
    by_document = prepare(config_of(tmp_path / "in", tmp_path / "cache", split_by="document"))
    by_position = prepare(config_of(tmp_path / "in", tmp_path / "cache"))
    assert sorted(texts_of(by_document, "train") + texts_of(by_document, "val")) == sorted(TEXTS[:50])
    assert "by" not in by_position.fingerprint["split"]
    assert by_document.fingerprint["split"]["by"] == "document"


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_text_is_split_where_its_bytes_decide(ending: str, tmp_path: Path) -> None:
    text = "".join(TEXTS)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / f"a.txt{ending}").write_bytes(compress(text.encode(), ending))
    plain, compressed = (prepare(config_of(tmp_path / f"a.txt{end}", tmp_path / "cache")) for end in ("", ending))
    assert plain.store.folder == compressed.store.folder


def test_an_empty_file_among_others_holds_no_document(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", TEXTS)
    (tmp_path / "in" / "b.jsonl").touch()
    assert prepare(config_of(tmp_path / "in", tmp_path / "cache")).fingerprint["documents"] == len(TEXTS)


@pytest.mark.parametrize("kind", ["char", "file"])
def test_the_number_of_processes_changes_nothing(kind: str, bpe: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for number in range(5):
        write_jsonl(tmp_path / f"in/{number}.jsonl", documents(50, number))
    tokenizer = bpe if kind == "file" else kind
    one, two = (
        prepare(config_of(tmp_path / "in", tmp_path / str(n), tokenizer=tokenizer, prepare_processes=n)) for n in (1, 2)
    )
    assert one.fingerprint == two.fingerprint
    assert one.store.folder.name == two.store.folder.name
    for name in ("train.bin", "val.bin", "store.json"):
        assert (one.store.folder / name).read_bytes() == (two.store.folder / name).read_bytes()


def test_a_bad_record_is_one_line_from_any_process(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for number in range(3):
        write_jsonl(tmp_path / f"in/{number}.jsonl", documents(10, number))
    with (tmp_path / "in/1.jsonl").open("a") as file:
        file.write("[]\n")
    with pytest.raises(UserError, match=r"in/1\.jsonl:11: it is a list, not 'text'"):
        prepare(config_of(tmp_path / "in", tmp_path / "cache", prepare_processes=2))


def test_the_first_bad_record_ends_the_work(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for number in range(6):
        write_jsonl(tmp_path / f"in/{number}.jsonl", documents(10, number))
    (tmp_path / "in/0.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match=r"in/0\.jsonl:1: it is a list, not 'text'"):
        prepare(config_of(tmp_path / "in", tmp_path / "cache", prepare_processes=2))
    # Two processes had three files each: the one that met the error left its other two alone.
    (folder,) = (tmp_path / "cache/shards").iterdir()
    assert len(list(folder.glob("*.json"))) <= 3
    assert not list(folder.glob(".*"))


def test_a_second_call_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    for tokenizer in ("char", "bpe"):
        asked = config_of(path, tmp_path / "cache", tokenizer=tokenizer, vocab_size=300)
        first = prepare(asked)
        with monkeypatch.context() as patch:
            patch.setattr(documents_file, "open_source", lambda *_: pytest.fail("read again"))
            assert prepare(asked).fingerprint == first.fingerprint
    write_jsonl(path, TEXTS[1:])
    assert prepare(asked).fingerprint["documents"] == 299


def test_after_a_kill_only_what_is_not_finished_is_read(tmp_path: Path) -> None:
    """The server does not answer for the last file, so that the kill comes when one shard is missing."""
    pytest.importorskip("datasets")
    for number in range(4):
        write_jsonl(tmp_path / f"in/{number}.jsonl", documents(40, number))
    undisturbed = prepare(config_of(tmp_path / "in", tmp_path / "other", tokenizer="char"))
    gate = threading.Event()
    with serve(tmp_path / "in", **{"3": gate}) as (address, asked):
        command = prepare_command(f"{address}/{{0..3}}.jsonl", tmp_path / "cache")
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        wait_until(lambda: len(list((tmp_path / "cache/shards").rglob("*.json"))) == 3 and "GET /3.jsonl" in asked)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        gate.set()
        del asked[:]
        output = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert asked == ["GET /3.jsonl"]
    assert Path(output["folder"]).name == undisturbed.store.folder.name
    assert (Path(output["folder"]) / "train.bin").read_bytes() == (undisturbed.store.folder / "train.bin").read_bytes()


def prepare_command(corpus: str, cache: Path) -> list[str]:
    command = [sys.executable, "-m", "tinytf", "prepare", "--json", "--data.corpus", corpus]
    return [*command, "--data.cache_dir", str(cache), "--data.prepare_processes", "2"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a process's children are read from Linux' /proc")
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for number in range(3):
        write_jsonl(tmp_path / f"in/{number}.jsonl", documents(40, number))
    gate = threading.Event()
    with serve(tmp_path / "in", **{"2": gate}) as (address, asked):
        command = prepare_command(f"{address}/{{0..2}}.jsonl", tmp_path / "cache")
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: len(list((tmp_path / "cache/shards").rglob("*.json"))) == 2 and "GET /2.jsonl" in asked)
        workers = children(first.pid)
        assert len(workers) >= 2
        first.kill()
        first.wait()
        wait_until(lambda: not any(runs(pid) for pid in workers))
        assert not gate.is_set()
        gate.set()


def children(parent: int) -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if stat_of(path)[1:2] == [str(parent)]]


def runs(pid: int) -> bool:
    # A container's first process may leave ended orphans as zombies.
    return stat_of(Path(f"/proc/{pid}"))[:1] not in ([], ["Z"])


def stat_of(process: Path) -> list[str]:
    """State, parent, …; nothing once the process has ended."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def test_who_waits_for_another_command_says_for_whom_and_can_be_interrupted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/0.jsonl", documents(40))
    gate = threading.Event()
    with serve(tmp_path / "in", **{"0": gate}) as (address, asked):
        command = prepare_command(f"{address}/0.jsonl", tmp_path / "cache")
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda: "GET /0.jsonl" in asked)
        second = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert f"process {first.pid} is preparing {address}/0.jsonl: waiting for it" in second.stderr.readline()
        second.send_signal(signal.SIGINT)
        assert second.wait(20) == 130
        gate.set()
        assert first.wait(60) == 0


def wait_until(true: object) -> None:
    deadline = time.monotonic() + 120
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_is_killed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    for number in range(2):
        write_jsonl(tmp_path / f"in/{number}.jsonl", TEXTS)

    def kill_itself(row: object, **rest: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(shards_file, "_tokenize_row", kill_itself)
    with pytest.raises(RunError, match=r"process was killed, perhaps for want of memory: what is done is kept"):
        prepare(config_of(tmp_path / "in", tmp_path / "cache", prepare_processes=2))


def test_a_bug_in_a_process_is_not_taken_for_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    for number in range(2):
        write_jsonl(tmp_path / f"in/{number}.jsonl", TEXTS)

    def fail(row: object, **rest: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(shards_file, "_tokenize_row", fail)
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        prepare(config_of(tmp_path / "in", tmp_path / "cache", prepare_processes=2))


def test_bpe_learns_from_a_sample_of_the_training_documents(tmp_path: Path) -> None:
    texts = [f"{word} {word} {word}" for word in (f"word{number}" * 5 for number in range(2000))]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    changes = {"tokenizer": "bpe", "vocab_size": 270}
    whole = prepare(config_of(path, tmp_path / "a", **changes))
    sampled = [prepare(config_of(path, tmp_path / name, bpe_sample_bytes=3000, **changes)) for name in "bc"]
    assert sampled[0].tokenizer.to_str() == sampled[1].tokenizer.to_str() != whole.tokenizer.to_str()
    # Documents for validation do not count: without those documents the merges are the same.
    val = set(texts_of(whole, "val"))
    write_jsonl(path, [text for text in texts if text not in val])
    without = prepare(config_of(path, tmp_path / "a", val_corpus=str(path), **changes))
    assert without.tokenizer.to_str() == whole.tokenizer.to_str()


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tinytf.data.build import prepare\n"
        "from tinytf.data.config import CorpusConfig\n"
        "prepare(CorpusConfig(sys.argv[1], 'char', cache_dir=sys.argv[2], prepare_processes=1))\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    peaks = []
    text = "It was the best of times, it was the worst of times.\n" * 40
    for name, count in (("small", 2000), ("large", 8000)):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{number} {text}" for number in range(count)])
        command = [sys.executable, "-c", program, str(tmp_path / f"{name}.jsonl"), str(tmp_path / "cache")]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    assert peaks[1] < peaks[0] + 12 * 1024


WRONG = {
    "no JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2: it is not JSON"),
    "other field": (
        "a.jsonl",
        b'{"body": "a"}\n',
        r"a\.jsonl:1: its fields are 'body', not 'text': set --data\.text_f",
    ),
    "no object": ("a.jsonl", b"[1]\n", r"a\.jsonl:1: it is a list, not 'text'"),
    "null": ("a.jsonl", b'{"text": null}\n', r"its field 'text' holds null, not text"),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', r"half a surrogate pair"),
    "not UTF-8": ("a.jsonl", b'{"text": "\xff"}\n', r"it is not JSON"),
    "nothing": ("a.jsonl", b"\n\n", r"there is no text in it at all"),
    "one": ("a.jsonl", b'{"text": "a"}\n', r"the val split is empty: none of the 1 documents"),
    "no gzip": ("a.jsonl.gz", b'{"text": "a"}\n', r"a\.jsonl\.gz: it is damaged or cut short"),
    "cut gzip": ("a.jsonl.gz", None, r"a\.jsonl\.gz: it is damaged or cut short"),
    "cut zst": ("a.jsonl.zst", None, r"a\.jsonl\.zst: it is damaged or cut short"),
    "cut text": ("a.txt.gz", None, r"a\.txt\.gz: it is damaged or cut short"),
    "no zst": ("a.jsonl.zst", b'{"text": "a"}\n', r"a\.jsonl\.zst: it is damaged or cut short"),
    "no parquet": ("a.parquet", b"PAR1 and no more", r"a\.parquet: it is no \.parquet file"),
    "compressed parquet": ("a.parquet.gz", b"", r"\.parquet is compressed inside, and cannot be read"),
}


@pytest.mark.parametrize(("name", "content", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_document_is_one_clear_line(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is None:
        noise = random.Random(0).randbytes(3000).hex()
        content = write_jsonl(path, [noise]).read_bytes()[:-40]
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        prepare(config_of(path, tmp_path / "cache"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_by": "line"}, r"data\.split_by is line: expected auto, position or document"),
        ({"split_by": "position"}, r"a\.jsonl: it holds documents"),
        ({"split_by": "document", "corpus": "python-docs"}, r"python-docs is one text"),
        ({"val_corpus": "python-docs"}, r"corpus python-docs: it is one text, and does not go with"),
        ({"val_fraction": 0.0}, r"data\.val_fraction is 0\.0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"leave nothing to train on"),
        ({"bpe_sample_bytes": 0}, r"data\.bpe_sample_bytes is 0"),
        ({"prepare_processes": -1}, r"data\.prepare_processes is -1"),
    ],
)
def test_settings_that_cannot_be_used(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(UserError, match=message):
        prepare(replace(config_of(path, tmp_path / "cache"), **changes))  # type: ignore[arg-type]


def test_empty_documents_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*TEXTS, "", ""])
    with caplog.at_level("WARNING", "tinytf"):
        prepared = prepare(config_of(path, tmp_path / "cache"))
    assert prepared.fingerprint["documents"] == 300
    assert "2 of 302 documents are empty, and left out" in caplog.text


def test_a_tokenizer_without_end_of_text_is_refused_before_the_work(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(UserError, match=r"no special token like <\|endoftext\|>"):
        prepare(config_of(path, tmp_path / "cache"), character_tokenizer("ab", end_of_text=False))
    with pytest.raises(UserError, match=r"does not know the character .* of .*a\.jsonl:1"):
        prepare(config_of(path, tmp_path / "cache"), character_tokenizer("ab", end_of_text=True))


def test_a_file_that_changes_meanwhile_leaves_no_shard(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    (shard,) = shards_of(replace(local_file(path), stamp="then"))
    work = ShardTokenizer(tmp_path / "shards", Records("text"), None, 0, "uint32", SplitFractions(0.1, 0.0))
    with pytest.raises(UserError, match=r"a\.jsonl: it changed while it was read"):
        work.tokenize_all([shard], 1, "reading")
    assert list((tmp_path / "shards").iterdir()) == []
