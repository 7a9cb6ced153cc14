"""The journal: strict JSON whatever it is given, whole lines whatever happens."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest

from tinytf.run.journal import Journal, encode, read
from tinytf.utils.text import utc_now


def strict(line: bytes) -> object:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not strict JSON")

    return json.loads(line, parse_constant=refuse)


def test_numbers_that_are_not_finite_are_strings() -> None:
    line = encode({"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 1.5})
    assert strict(line) == {"a": "NaN", "b": ["Infinity", {"c": "-Infinity"}], "d": 1.5}


def test_any_text_is_one_line_of_utf8() -> None:
    text = "snow ☃\nnew line \u2028 \udc80"
    line = encode({"text": text})
    assert line.count(b"\n") == 1
    assert strict(line) == {"text": text}
    line.decode("utf-8")


def test_what_json_has_no_form_for_is_refused() -> None:
    with pytest.raises(TypeError):
        encode({"a": object()})


def test_records_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "metrics.jsonl")
    for step in range(3):
        journal.write("metrics", step, {"train/loss": step / 2})
    journal.sync()
    found = list(read(journal.path))
    assert [(record["event"], record["step"], record["train/loss"]) for record in found] == [
        ("metrics", 0, 0.0), ("metrics", 1, 0.5), ("metrics", 2, 1.0),
    ]  # fmt: skip
    assert all(len(record["time"]) == 27 and record["time"].endswith("Z") for record in found)


def test_a_torn_last_line_is_no_record_and_those_elsewhere_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    Journal(path).write("metrics", 1, {})
    with path.open("ab") as file:
        file.write(b'{"event": "met')
    assert [record["step"] for record in read(path)] == [1]
    assert not caplog.records
    with path.open("ab") as file:
        file.write(b"\n" + encode({"event": "metrics", "time": utc_now(), "step": 2}))
    assert [record["step"] for record in read(path)] == [1, 2]
    assert f"{path}: 1 lines are no records and are left out, the first of them line 2" in caplog.text


def test_rewinding_drops_newer_and_broken_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in range(5):
        journal.write("metrics", step, {})
    before = journal.path.read_bytes()
    with journal.path.open("ab") as file:
        file.write(b"\0\0\0\0")
    assert journal.rewind(lambda record: record["step"] <= 2) == 1
    assert journal.path.read_bytes() == b"".join(before.splitlines(keepends=True)[:3])
    journal.write("metrics", 3, {})
    assert [record["step"] for record in read(journal.path)] == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_rewinding_nothing_leaves_the_file_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    assert journal.rewind(lambda record: True) == 0
    assert not journal.path.exists()
    journal.write("metrics", 1, {})
    inode = journal.path.stat().st_ino
    journal.rewind(lambda record: True)
    assert journal.path.stat().st_ino == inode


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write("start", 0, {})

    def many(name: int) -> None:
        for step in range(200):
            journal.write("sample", step, {"by": name, "long": "x" * 2000})

    threads = [threading.Thread(target=many, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(read(journal.path))) == 801


WRONG = [
    {"event": "metrics", "train/loss": []},
    {"event": "metrics", "train/loss": None},
    {"event": "metrics", "train/loss": "much"},
    {"event": "metrics", "train/loss": 10**400},
    {"event": "end", "reason": ["finished"]},
    {"event": "start", "max_steps": "9"},
    {"event": "start", "process": {"pid": 2**40, "started": 1}},
    {"event": "start", "process": {"pid": 1}},
    {"event": "start", "process": [1]},
    {"event": "start", "provenance": {"git": {"commit": 1}}},
    {"event": "start", "provenance": 3},
    {"event": "start", "step": "1"},
    {"event": "start", "time": "2026-13-45"},
]


@pytest.mark.parametrize("record", WRONG, ids=str)
def test_a_record_with_a_field_of_another_type_is_left_out(record: dict[str, object], tmp_path: Path) -> None:
    right = {"event": "metrics", "time": utc_now(), "step": 1, "train/loss": 2.5, "val/loss": math.inf}
    (tmp_path / "metrics.jsonl").write_bytes(encode({"time": utc_now(), "step": 1} | record) + encode(right))
    assert [found["val/loss"] for found in read(tmp_path / "metrics.jsonl")] == ["Infinity"]
