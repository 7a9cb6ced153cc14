"""Token ids on disk: what is there is right and whole, or it is made anew."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.shards import documents, write_jsonl
from tinytf.data.build import prepare
from tinytf.data.config import CorpusConfig, cache_root, cache_write
from tinytf.data.documents import text_documents
from tinytf.data.splits import TextSpan
from tinytf.data.tokenizer import character_tokenizer, encode, end_of_text_id
from tinytf.data.tokens import text_corpus as text_corpus_module
from tinytf.data.tokens.store import TokenStore, open_store
from tinytf.data.tokens.text_corpus import build_store
from tinytf.data.windows import ShuffledWindows
from tinytf.errors import UserError

TEXT = "It was the best of times, it was the worst of times.\n" * 40


@pytest.fixture
def config(tmp_path: Path) -> CorpusConfig:
    (tmp_path / "text.txt").write_text(TEXT)
    return CorpusConfig(
        corpus=str(tmp_path / "text.txt"),
        tokenizer="char",
        vocab_size=270,
        val_fraction=0.1,
        test_fraction=0.0,
        val_corpus=None,
        test_corpus=None,
        cache_dir=str(tmp_path / "cache"),
    )


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were tokenized into, not found."""
    folders: list[Path] = []

    def build(folder: Path, *rest: object) -> object:
        folders.append(folder)
        return build_store(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(text_corpus_module, "build_store", build)
    return folders


def stores(config: CorpusConfig) -> list[Path]:
    return sorted((Path(str(config.cache_dir)) / "tokens").iterdir())


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_splits_decode_to_the_text(config: CorpusConfig, tokenizer: str) -> None:
    prepared = prepare(replace(config, tokenizer=tokenizer, test_fraction=0.2))
    parts = [prepared.tokenizer.decode(prepared.store.split(name).tolist()) for name in ("train", "test", "val")]
    assert "".join(parts) == TEXT
    assert [len(part) for part in parts] == [prepared.store.bytes[name] for name in ("train", "test", "val")]
    assert {name: len(prepared.store.split(name)) for name in ("train", "test", "val")} == prepared.store.tokens
    assert isinstance(prepared.store.split("val"), np.memmap)


def test_a_second_call_finds_it(config: CorpusConfig, built: list[Path]) -> None:
    first, second = prepare(config), prepare(config)
    assert len(built) == 1
    assert first.fingerprint == second.fingerprint
    json.dumps(first.fingerprint)


def test_bpe_is_trained_on_the_training_part_alone(config: CorpusConfig) -> None:
    path = Path(config.corpus)
    one = prepare(replace(config, tokenizer="bpe"))
    path.write_text(TEXT[: int(len(TEXT) * 0.9)] + "z" * (len(TEXT) - int(len(TEXT) * 0.9)))
    other = prepare(replace(config, tokenizer="bpe"))
    assert one.fingerprint["sha256"] != other.fingerprint["sha256"]
    assert one.fingerprint["tokenizer_sha256"] == other.fingerprint["tokenizer_sha256"]


def test_a_small_sample_of_a_longer_text_is_taken_from_all_over_it(tmp_path: Path) -> None:
    """One smaller than the 64 Ki characters that are encoded at a time learned nothing."""
    words = [f"{'qxz' if number % 500 == 250 else 'the'}{number % 7} " for number in range(100_000)]
    (tmp_path / "long.txt").write_text("".join(words))
    config = CorpusConfig(str(tmp_path / "long.txt"), "bpe", 260, cache_dir=str(tmp_path / "cache"))
    prepared = prepare(replace(config, bpe_sample_bytes=20_000))
    assert prepared.tokenizer.token_to_id("Ġthe") is not None
    with pytest.raises(UserError, match=r"nothing repeats after 257 entries; .* data\.bpe_sample_bytes"):
        prepare(replace(config, bpe_sample_bytes=3))


def test_whatever_changes_the_ids_changes_the_place(config: CorpusConfig, built: list[Path]) -> None:
    prepare(config)
    for change in (
        {"val_fraction": 0.2},
        {"test_fraction": 0.1},
        {"tokenizer": "bpe"},
        {"tokenizer": "bpe", "vocab_size": 265},
        {"val_corpus": "python-docs"},
    ):
        prepare(replace(config, **change))
    Path(config.corpus).write_text(TEXT.replace("best", "west"))
    prepare(config)
    assert len(built) == len(set(built)) == 7


def test_a_file_changed_within_its_size_and_time_is_seen(config: CorpusConfig) -> None:
    path, before = Path(config.corpus), prepare(config)
    stat = path.stat()
    path.write_text(TEXT.replace("best", "tseb"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = prepare(config)
    assert after.tokenizer.decode(after.store.split("train")[:20].tolist()) == TEXT.replace("best", "tseb")[:20]
    assert after.fingerprint["sha256"] != before.fingerprint["sha256"]


@pytest.mark.parametrize(
    "harm", ["no description", "torn description", "short", "missing", "other key", "other format"]
)
def test_a_torn_store_is_made_anew(config: CorpusConfig, built: list[Path], harm: str) -> None:
    expected = np.array(prepare(config).store.split("train"))
    (folder,) = stores(config)
    description = json.loads((folder / "store.json").read_text())
    if harm == "no description":
        (folder / "store.json").unlink()
    elif harm == "torn description":
        (folder / "store.json").write_text((folder / "store.json").read_text()[:-20])
    elif harm == "short":
        os.truncate(folder / "train.bin", 100)
    elif harm == "missing":
        (folder / "val.bin").unlink()
    else:
        description["key" if harm == "other key" else "format"] = "?"
        (folder / "store.json").write_text(json.dumps(description))
    assert np.array_equal(prepare(config).store.split("train"), expected)
    assert len(built) == 2


@pytest.mark.parametrize("kind", ["text", "documents"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_damage_within_the_size_is_found_and_mended(
    kind: str, split: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    corpus = text if kind == "text" else write_jsonl(tmp_path / "a.jsonl", documents(100))
    config = CorpusConfig(str(corpus), cache_dir=str(tmp_path / "cache"), prepare_processes=1)
    before = prepare(config)
    file = before.store.folder / f"{split}.bin"
    raw = file.read_bytes()
    for place in (0, len(raw) // 2, len(raw) - 1):
        damaged = bytearray(raw)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        caplog.clear()
        assert prepare(config).store == before.store
        assert file.read_bytes() == raw
        assert f"{split}.bin are damaged, and made again" in caplog.text
        caplog.clear()
        prepare(config)
        assert not caplog.text


def test_every_process_of_a_machine_checks(
    config: CorpusConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torchrun starts them at once: the second may come before the first, and would train on what that replaces."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    file = prepare(config).store.folder / "train.bin"
    raw = file.read_bytes()
    file.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    prepare(config)
    assert file.read_bytes() == raw
    assert "train.bin are damaged, and made again (another checksum)" in caplog.text


def test_ids_that_cannot_be_read_are_made_again(
    config: CorpusConfig, built: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = prepare(config).store

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("tinytf.data.tokens.store.sha256_of", fail)
        assert open_store(store.folder, store.folder.name) is None
    assert "are damaged, and made again (Input/output error)" in caplog.text
    assert prepare(config).store == store
    assert len(built) == 2


@pytest.mark.parametrize("entry", [{}, {"sha256": "0" * 64}, {"sha256": "0" * 64, "split": [1]}, {"sha256": 1}])
def test_an_entry_that_does_not_say_what_was_prepared(config: CorpusConfig, entry: dict[str, object]) -> None:
    given = character_tokenizer(TEXT, end_of_text=False)
    with pytest.raises(UserError, match=r"what \*\*\* stands for is not stored"):
        prepare(replace(config, corpus="https://localhost/***"), given, entry)


def test_a_setting_of_another_type_is_named() -> None:
    with pytest.raises(
        UserError, match=r"^data\.corpus is \['x'\], but must be str; data\.val_corpus is 3, but must be"
    ):
        CorpusConfig(corpus=["x"], val_corpus=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^data\.vocab_size is True, but must be int$"):
        CorpusConfig(vocab_size=True, val_fraction=0)


def test_a_model_starts_from_a_token_of_its_training(tmp_path: Path) -> None:
    """A model of one text never sees the token between documents; one of a text in one line sees no line feed."""
    for name, text, wanted in (("a", "ab " * 200, "a"), ("b", "ab \n" * 200, "\n"), ("c", "ab " * 200 + "\n", "a")):
        (tmp_path / f"{name}.txt").write_text(text)
        for tokenizer in ("char", "bpe"):
            config = CorpusConfig(str(tmp_path / f"{name}.txt"), tokenizer, 258, cache_dir=str(tmp_path / "cache"))
            prepared = prepare(config)
            start = prepared.fingerprint["start_token"]
            assert start in prepared.store.split("train")
            assert prepared.tokenizer.decode([start])[0] == wanted
    prepared = prepare(CorpusConfig(str(write_jsonl(tmp_path / "a.jsonl", documents(40))), cache_dir=str(tmp_path)))
    assert prepared.fingerprint["start_token"] == end_of_text_id(prepared.tokenizer)


def test_killed_while_it_tokenizes_nothing_is_read(config: CorpusConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(text_corpus_module, "_counted", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    (folder,) = stores(config)
    assert open_store(folder, folder.name) is None
    assert list(folder.iterdir()) == []


def test_two_processes_at_once(config: CorpusConfig) -> None:
    program = (
        "import sys, json\n"
        "from tinytf.data.build import prepare\nfrom tinytf.data.config import CorpusConfig\n"
        "prepared = prepare(CorpusConfig(**json.loads(sys.argv[1])))\n"
        "print(prepared.store.split('train')[:50].tolist(), prepared.fingerprint)"
    )
    spec = json.dumps({**asdict(config), "tokenizer": "bpe"})
    running = [subprocess.Popen([sys.executable, "-c", program, spec], stdout=subprocess.PIPE) for _ in range(3)]
    outputs = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(outputs) == 1
    (folder,) = stores(config)
    assert {path.name for path in folder.iterdir()} == {"train.bin", "val.bin", "store.json"}


def test_documents_stand_apart(config: CorpusConfig, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.txt").write_text(f"document {number}")
    for tokenizer in ("char", "bpe"):
        prepared = prepare(replace(config, corpus=str(folder), tokenizer=tokenizer, vocab_size=260))
        assert prepared.store.split("train").tolist().count(0) == 8
        assert prepared.tokenizer.decode(prepared.store.split("train").tolist(), skip_special_tokens=False) == (
            "<|endoftext|>".join(f"document {number}" for number in range(9))
        )
    given = character_tokenizer("document 0123456789", end_of_text=False)
    with pytest.raises(UserError, match=r"no special token like <\|endoftext\|>"):
        prepare(replace(config, corpus=str(folder)), given)


def test_a_given_tokenizer_that_does_not_know_the_text(config: CorpusConfig) -> None:
    with pytest.raises(UserError, match=r"'\.' \(U\+002E FULL STOP\) in line 1 of .*text\.txt \(byte 51\)"):
        prepare(config, character_tokenizer(TEXT.replace(".", ""), end_of_text=False))


def test_an_unknown_character_of_a_later_split_has_the_line_of_its_file(config: CorpusConfig) -> None:
    lines = [f"line {number}\n" for number in range(1, 101)]
    Path(config.corpus).write_text("".join([*lines[:95], "odd ~ line\n", *lines[95:]]))
    at = len("".join(lines[:95])) + len("odd ")
    with pytest.raises(UserError, match=rf"in line 96 of .*text\.txt \(byte {at}\)"):
        prepare(config, character_tokenizer("".join(lines) + "odd", end_of_text=False))


def test_a_damaged_tokenizer_is_trained_again(config: CorpusConfig) -> None:
    config = replace(config, tokenizer="bpe")
    before = prepare(config).tokenizer.to_str()
    (kept,) = (Path(str(config.cache_dir)) / "tokenizers").iterdir()
    kept.write_text(before[:-100])
    assert prepare(config).tokenizer.to_str() == before
    assert kept.read_text() == before


def test_large_vocabularies_take_four_bytes(config: CorpusConfig, tmp_path: Path) -> None:
    characters = "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x14000)]))
    (tmp_path / "wide.txt").write_text(characters, encoding="utf-8")
    prepared = prepare(replace(config, corpus=str(tmp_path / "wide.txt")))
    assert prepared.store.dtype == "uint32"
    assert (
        prepared.store.split("train").tolist()
        == encode(prepared.tokenizer, characters)[: prepared.store.tokens["train"]]
    )


def test_a_text_that_changes_meanwhile_leaves_no_store(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some text")
    (document,) = text_documents(str(path), tmp_path)
    path.write_text("TOME text and more")
    split = (TextSpan(document, 0, 9),)
    with pytest.raises(UserError, match=r"a\.txt: it changed while it was read"):
        build_store(tmp_path / "store", "key", {"train": split}, character_tokenizer("TOMEsome txt", end_of_text=False))
    assert open_store(tmp_path / "store", "key") is None


def test_a_text_that_is_removed_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some text")
    (document,) = text_documents(str(path), tmp_path)
    path.unlink()
    with pytest.raises(
        UserError, match=r"a\.txt: it changed while it was read \(No such file or directory\): run again"
    ):
        document.require_unchanged()


def test_a_text_that_becomes_shorter(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (document,) = text_documents(str(tmp_path / "a.txt"), tmp_path)
    longer = replace(document, size=12)
    with pytest.raises(UserError, match=r"a\.txt: it became shorter"):
        list(TextSpan(longer, 0, 12).blocks())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux' /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Four times the text takes no more memory: tokenized 24 MB at about the peak of 6 MB."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tinytf.data.build import prepare\nfrom tinytf.data.config import CorpusConfig\n"
        "prepare(CorpusConfig(sys.argv[1], cache_dir=sys.argv[2]))\n"
        # Not getrusage: its peak is inherited from the process that started this one.
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    peaks = []
    for name, times in (("small", 1), ("large", 4)):
        (tmp_path / name).write_text(TEXT * 2830 * times)
        command = [sys.executable, "-c", program, str(tmp_path / name), str(tmp_path / "cache")]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    assert peaks[1] < peaks[0] + 8 * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux' /proc")
def test_a_store_of_100_gigabytes_opens_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from the reading for its checksum, in blocks."""
    monkeypatch.setattr(TokenStore, "is_undamaged", lambda _: True)
    size = 5 * 10**10
    with (tmp_path / "train.bin").open("wb") as file:
        file.truncate(2 * size)
    description = {"format": 2, "key": "k", "dtype": "uint16", "tokens": {"train": size}, "bytes": {"train": size},
                   "documents": None, "sha256": {"train": ""}, "start_token": 0}  # fmt: skip
    (tmp_path / "store.json").write_text(json.dumps(description))
    before = resident_kilobytes()
    store = open_store(tmp_path, "k")
    assert store is not None
    batches = ShuffledWindows(store.split("train"), batch_size=4, seq_len=64, seed=1)
    starts = [start for k in range(3) for start in batches.starts(k).tolist()]
    assert max(starts) > size // 2
    assert batches[2][0].tolist() == [[0] * 64] * 4
    assert store.split("train")[size - 1] == 0
    assert resident_kilobytes() < before + 10_000


def resident_kilobytes() -> int:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYTF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root(None) == Path.home() / ".cache" / "tinytf"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root(None) == Path("/xdg/tinytf")
    monkeypatch.setenv("TINYTF_CACHE", "/mine")
    assert cache_root(None) == Path("/mine")
    assert cache_root("/given") == Path("/given")


def test_a_cache_that_cannot_be_written(config: CorpusConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cache cannot be written .*--data\.cache_dir or TINYTF_CACHE"):
        prepare(replace(config, cache_dir=str(tmp_path / "file")))


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_write_that_the_disk_refuses_is_one_line(
    reason: int, config: CorpusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the lock was taken, as on a disk that fills up meanwhile; chmod would not stop root, who runs tests too."""

    def refuse(path: Path) -> None:
        raise OSError(reason, os.strerror(reason), str(path))

    monkeypatch.setattr("tinytf.data.config.atomic_write", refuse)
    with pytest.raises(UserError, match=rf"cache cannot be written at .*\({os.strerror(reason)}\): make") as caught:
        prepare(config)
    assert "\n" not in str(caught.value)


def test_a_failed_write_keeps_the_old_file_and_old_leftovers_go(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    abanpreparedd, fresh = tmp_path / ".a.1.tmp", tmp_path / ".a.2.tmp"
    abanpreparedd.touch()
    fresh.touch()
    os.utime(abanpreparedd, (time.time() - 10**6,) * 2)

    def fail() -> None:
        with cache_write(tmp_path / "a") as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", ".a.2.tmp": ""}


def test_a_prepared_cache_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a mount that is read-only, which a test that runs as root cannot make from permissions."""
    path = tmp_path / "a.txt"
    path.write_text("abc" * 100)
    config = CorpusConfig(corpus=str(path), cache_dir=str(tmp_path / "cache"))
    first = prepare(config)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert prepare(config).store == first.store
