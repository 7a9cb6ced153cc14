"""Progress speaks for long work only, and plainly where nobody watches."""

from __future__ import annotations

import pytest

from tinytf.data import progress as progress_room
from tinytf.data.progress import byte_progress


def test_short_work_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_progress("reading", 10) as progress:
        progress.advance(10)
    assert capsys.readouterr() == ("", "")


def test_long_work_says_a_plain_line_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_room, "QUIET_SECONDS", 0.0)
    with byte_progress("reading", 4_000_000) as progress:
        progress.advance(1_000_000)
        progress.advance(3_000_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" MB,")[0] for line in err.splitlines()] == ["reading: 1.0 of 4.0", "reading: 4.0 of 4.0"]
    assert "\r" not in err
    assert "\x1b" not in err


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_room, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with byte_progress("reading", 4_000_000) as progress:
        progress.advance(4_000_000)
    assert "reading" in capsys.readouterr().err
