"""Corpora of documents: each in one split for ever, in an order without order, whatever the files and processes."""

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
from itertools import chain, pairwise
from pathlib import Path

import pytest

from tests.data.shards import documents, held, served, settings, write_jsonl
from tinytf.data import gather as gather_room
from tinytf.data import pool as pool_room
from tinytf.data import records as records_room
from tinytf.data.pool import Work, tokenise
from tinytf.data.prepare import prepare
from tinytf.data.settings import TextSettings
from tinytf.data.tokenizer import byte_pair_tokenizer, character_tokenizer
from tinytf.errors import UserError

TEXTS = documents(300)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    byte_pair_tokenizer(iter(TEXTS), 300).save(str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["char", "file"])
def test_every_document_is_in_one_split_with_a_token_after_it(kind: str, bpe: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    done = prepare(settings(path, tmp_path / "cache", tokenizer=bpe if kind == "file" else kind, test_fraction=0.2))
    parts = {name: held(done, name) for name in ("train", "val", "test")}
    assert sorted(chain.from_iterable(parts.values())) == sorted(TEXTS)
    for name, share in (("train", 210), ("val", 30), ("test", 60)):
        assert abs(len(parts[name]) - share) < 30
        assert done.store.bytes[name] == sum(len(text.encode()) for text in parts[name])
        assert done.fingerprint["split_documents"][name] == len(parts[name])
    assert list((tmp_path / "cache" / "parts").rglob("*.ids")) == []


def test_the_order_is_no_order_of_the_file_and_always_the_same(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    one, other = (prepare(settings(path, tmp_path / name)) for name in ("one", "other"))
    order = [TEXTS.index(text) for text in held(one, "train")]
    assert held(one, "train") == held(other, "train")
    # The mean distance of neighbours in a random order of n is n / 3.
    assert sum(abs(a - b) for a, b in pairwise(order)) / len(order) == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize("size", [97, 1000])
def test_slices_of_a_file_are_all_of_it(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:60])
    whole = prepare(settings(path, tmp_path / "whole"))
    monkeypatch.setattr(records_room, "SLICE", size)
    sliced = prepare(settings(path, tmp_path / "sliced"))
    assert sliced.store.tokens == whole.store.tokens
    assert sliced.store.split("train").tolist() == whole.store.split("train").tolist()


def test_stretches_are_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", TEXTS)
    write_jsonl(tmp_path / "in/b.jsonl", documents(100, seed=1))
    whole = prepare(settings(tmp_path / "in", tmp_path / "whole"))
    monkeypatch.setattr(gather_room, "STRETCH", 500)
    monkeypatch.setattr(gather_room, "PER_PART", 1)
    monkeypatch.setattr(gather_room, "CHUNK", 7)
    stretched = prepare(settings(tmp_path / "in", tmp_path / "stretched"))
    assert stretched.store.split("train").tolist() == whole.store.split("train").tolist()


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst"])
def test_a_packed_file_gives_the_same_store(ending: str, tmp_path: Path) -> None:
    plain = prepare(settings(write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "cache"))
    packed = prepare(settings(write_jsonl(tmp_path / f"p.{ending}", TEXTS), tmp_path / "cache"))
    assert packed.store.folder == plain.store.folder


def test_parquet_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(records_room, "SLICE", 2000)
    table = pyarrow.table({"id": range(300), "body": TEXTS})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=40)
    done = prepare(settings(tmp_path / "a.parquet", tmp_path / "cache", text_field="body"))
    plain = prepare(settings(write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "cache"))
    for name in ("train", "val"):
        assert sorted(held(done, name)) == sorted(held(plain, name))
    with pytest.raises(UserError, match=r"a\.parquet: its fields are 'id', 'body', not 'text': set --data\.text_field"):
        prepare(settings(tmp_path / "a.parquet", tmp_path / "cache"))


def test_no_document_moves_when_files_are_added(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/m.jsonl", TEXTS)
    before = prepare(settings(tmp_path / "in", tmp_path / "cache", test_fraction=0.1))
    write_jsonl(tmp_path / "in/a.jsonl", documents(200, seed=1))
    write_jsonl(tmp_path / "in/z/z.jsonl.gz", documents(200, seed=2))
    after = prepare(settings(tmp_path / "in", tmp_path / "cache", test_fraction=0.1))
    known = set(TEXTS)
    for name in ("train", "val", "test"):
        assert [text for text in held(after, name) if text in known] == held(before, name)
    assert len(held(after, "train")) > len(held(before, "train")) + 250


def test_validation_stays_with_or_without_a_test_split(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    one, other = (prepare(settings(path, tmp_path / "cache", test_fraction=share)) for share in (0.0, 0.3))
    assert held(one, "val") == held(other, "val")


def test_copies_of_a_document_are_in_one_split_and_apart(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [text for text in TEXTS for _ in range(3)])
    done = prepare(settings(path, tmp_path / "cache"))
    train, val = held(done, "train"), held(done, "val")
    assert not set(train) & set(val)
    assert sum(a == b for a, b in pairwise(train)) < 20


def test_a_corpus_for_validation_leaves_the_other_whole(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    val = write_jsonl(tmp_path / "b.jsonl", documents(10, seed=5))
    done = prepare(settings(path, tmp_path / "cache", val_corpus=str(val)))
    assert sorted(held(done, "train")) == sorted(TEXTS)
    assert sorted(held(done, "val")) == sorted(documents(10, seed=5))


def test_text_files_are_documents_where_asked(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS[:50]):
        (tmp_path / f"in/{number % 7}/{number}.txt").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"in/{number % 7}/{number}.txt").write_text(text)
    by_document = prepare(settings(tmp_path / "in", tmp_path / "cache", split_by="document"))
    by_tail = prepare(settings(tmp_path / "in", tmp_path / "cache"))
    assert sorted(held(by_document, "train") + held(by_document, "val")) == sorted(TEXTS[:50])
    assert "by" not in by_tail.fingerprint["split"]
    assert by_document.fingerprint["split"]["by"] == "document"


def test_packed_text_is_text(tmp_path: Path) -> None:
    import gzip

    text = "".join(TEXTS)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = (prepare(settings(tmp_path / name, tmp_path / "cache")) for name in ("a.txt", "a.txt.gz"))
    assert plain.store.folder == packed.store.folder


def test_text_packed_with_zstd_is_split_where_the_bytes_say(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    text = "".join(TEXTS)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(text.encode()))
    plain, packed = (prepare(settings(tmp_path / name, tmp_path / "cache")) for name in ("a.txt", "a.txt.zst"))
    assert plain.store.folder == packed.store.folder


def test_an_empty_file_among_others_holds_no_document(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", TEXTS)
    (tmp_path / "in" / "b.jsonl").touch()
    assert prepare(settings(tmp_path / "in", tmp_path / "cache")).fingerprint["documents"] == len(TEXTS)


def test_the_number_of_processes_changes_nothing(bpe: str, tmp_path: Path) -> None:
    for number in range(5):
        write_jsonl(tmp_path / f"in/{number}.jsonl", documents(50, number))
    one, two = (
        prepare(settings(tmp_path / "in", tmp_path / str(n), tokenizer=bpe, prepare_processes=n)) for n in (1, 2)
    )
    assert one.fingerprint == two.fingerprint
    assert one.store.split("train").tolist() == two.store.split("train").tolist()


def test_a_second_call_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    for tokenizer in ("char", "bpe"):
        asked = settings(path, tmp_path / "cache", tokenizer=tokenizer, vocab_size=300)
        first = prepare(asked)
        with monkeypatch.context() as patch:
            patch.setattr(records_room, "opened", lambda *_: pytest.fail("read again"))
            assert prepare(asked).fingerprint == first.fingerprint
    write_jsonl(path, TEXTS[1:])
    assert prepare(asked).fingerprint["documents"] == 299


def test_killed_it_goes_on_with_what_is_not_finished(tmp_path: Path) -> None:
    """The last file is held back by its server, so that the kill falls where one part is missing."""
    for number in range(4):
        write_jsonl(tmp_path / f"in/{number}.jsonl", documents(40, number))
    undisturbed = prepare(settings(tmp_path / "in", tmp_path / "other", tokenizer="char"))
    gate = threading.Event()
    with served(tmp_path / "in", **{"3": gate}) as (address, asked):
        command = [sys.executable, "-m", "tinytf", "prepare", "--json", "--data.corpus", f"{address}/{{0..3}}.jsonl"]
        command += ["--data.cache_dir", str(tmp_path / "cache"), "--data.prepare_processes", "2"]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda: len(list((tmp_path / "cache/parts").rglob("*.json"))) == 3 and "GET /3.jsonl" in asked)
        workers = children(first.pid)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert workers
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        gate.set()
        del asked[:]
        said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert asked == ["GET /3.jsonl"]
    assert Path(said["folder"]).name == undisturbed.store.folder.name
    assert (Path(said["folder"]) / "train.bin").read_bytes() == (undisturbed.store.folder / "train.bin").read_bytes()


def children(pid: int) -> list[int]:
    """Processes that were started by one, tokenising ones and multiprocessing's own helper."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(true: object) -> None:
    deadline = time.monotonic() + 120
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_is_killed_is_one_line(bpe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinytf.errors import RunError

    for number in range(2):
        write_jsonl(tmp_path / f"in/{number}.jsonl", TEXTS)
    watch = pool_room._watch

    def kill_one(futures: object, *rest: object) -> None:
        (victim, *_) = [pid for pid in children(os.getpid()) if b"spawn_main" in command_of(pid)]
        os.kill(victim, signal.SIGKILL)
        watch(futures, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pool_room, "_watch", kill_one)
    with pytest.raises(RunError, match=r"process was killed, perhaps for want of memory: what is done is kept"):
        prepare(settings(tmp_path / "in", tmp_path / "cache", tokenizer=bpe, prepare_processes=2))


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_bpe_learns_from_a_sample_of_the_training_documents(tmp_path: Path) -> None:
    texts = [f"{word} {word} {word}" for word in (f"word{number}" * 5 for number in range(2000))]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    changes = {"tokenizer": "bpe", "vocab_size": 270}
    whole = prepare(settings(path, tmp_path / "a", **changes))
    sampled = [prepare(settings(path, tmp_path / name, bpe_sample_bytes=3000, **changes)) for name in "bc"]
    assert sampled[0].tokenizer.to_str() == sampled[1].tokenizer.to_str() != whole.tokenizer.to_str()
    # What validation measures had no say: without those documents the merges are the same.
    val = set(held(whole, "val"))
    write_jsonl(path, [text for text in texts if text not in val])
    without = prepare(settings(path, tmp_path / "a", val_corpus=str(path), **changes))
    assert without.tokenizer.to_str() == whole.tokenizer.to_str()


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tinytf.data.prepare import TextSettings, prepare\n"
        "prepare(TextSettings(sys.argv[1], 'char', cache_dir=sys.argv[2], prepare_processes=1))\n"
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
    "no JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line at byte 14: it is not JSON"),
    "other field": ("a.jsonl", b'{"body": "a"}\n', r"line at byte 0: its fields are 'body', not 'text': set --data\."),
    "no object": ("a.jsonl", b"[1]\n", r"line at byte 0: it is a list, not 'text'"),
    "null": ("a.jsonl", b'{"text": null}\n', r"its field 'text' holds null, not text"),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', r"half a surrogate pair"),
    "not UTF-8": ("a.jsonl", b'{"text": "\xff"}\n', r"it is not JSON"),
    "nothing": ("a.jsonl", b"\n\n", r"there is no text in it at all"),
    "one": ("a.jsonl", b'{"text": "a"}\n', r"the val split is empty: none of the 1 documents"),
    "no gzip": ("a.jsonl.gz", b'{"text": "a"}\n', r"a\.jsonl\.gz: it is damaged or cut short"),
    "cut gzip": ("a.jsonl.gz", None, r"a\.jsonl\.gz: it is damaged or cut short"),
    "cut zst": ("a.jsonl.zst", None, r"a\.jsonl\.zst: it is damaged or cut short \(the last frame has no end"),
    "no zst": ("a.jsonl.zst", b'{"text": "a"}\n', r"a\.jsonl\.zst: it is damaged or cut short"),
    "no parquet": ("a.parquet", b"PAR1 and no more", r"a\.parquet: it is no \.parquet file"),
    "packed parquet": ("a.parquet.gz", b"", r"packed inside already"),
}


@pytest.mark.parametrize(("name", "content", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_document_is_one_clear_line(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is None:
        noise = random.Random(0).randbytes(3000).hex()
        content = write_jsonl(path, [noise]).read_bytes()[:-40]
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        prepare(settings(path, tmp_path / "cache"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_by": "line"}, r"data\.split_by is line: it must be auto, tail or document"),
        ({"split_by": "tail"}, r"a\.jsonl: it holds documents"),
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
        prepare(replace(settings(path, tmp_path / "cache"), **changes))  # type: ignore[arg-type]


def test_empty_documents_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*TEXTS, "", ""])
    with caplog.at_level("WARNING", "tinytf"):
        done = prepare(settings(path, tmp_path / "cache"))
    assert done.fingerprint["documents"] == 300
    assert "2 of 302 documents are empty, and left out" in caplog.text


def test_a_tokenizer_without_end_of_text_is_refused_before_the_work(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(UserError, match=r"no special token like <\|endoftext\|>"):
        prepare(settings(path, tmp_path / "cache"), character_tokenizer("ab", end_of_text=False))
    with pytest.raises(UserError, match=r"does not know the character .* of .*a\.jsonl, line at byte 0"):
        prepare(settings(path, tmp_path / "cache"), character_tokenizer("ab", end_of_text=True))


def test_a_file_that_changes_meanwhile_leaves_no_part(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    (piece,) = records_room.slices_of(records_room.TextFile(str(path), "jsonl", "", path.stat().st_size, "then"))
    with pytest.raises(UserError, match=r"a\.jsonl: it changed while it was read"):
        tokenise(Work(tmp_path / "parts", "text", None, "uint32"), [piece], 1, "reading")
    assert list((tmp_path / "parts").glob("*.json")) == []


def test_a_setting_has_the_name_and_default_of_the_module() -> None:
    import inspect

    from tinytf.data import TextDataModule

    theirs = inspect.signature(TextDataModule).parameters
    fields = TextSettings.__dataclass_fields__
    assert {name: theirs[name].default for name in fields} == {name: field.default for name, field in fields.items()}
