"""Provenance: it tells what ran, leaks no secret, and is silent about nothing it could not learn."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tinytf.run import provenance


def run_git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=trunk"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    run_git(tmp_path, "init", "-q")
    (tmp_path / "model.py").write_text("layers = 4\n")
    run_git(tmp_path, "add", "model.py")
    run_git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_everything_is_plain_strict_json() -> None:
    found = provenance.collect()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["packages"]["torch"]
    assert found["hardware"]["cores"] >= 1
    assert found["time"].endswith("Z")


def test_hostname_only_on_request() -> None:
    assert "hostname" not in provenance.collect()
    assert provenance.collect(hostname=True)["hostname"]


def test_a_clean_checkout(checkout: Path) -> None:
    state = provenance.git(checkout)
    assert state == {
        "commit": run_git(checkout, "rev-parse", "HEAD"),
        "branch": "trunk",
        "dirty": False,
        "untracked": 0,
        "diff": "",
        "note": None,
    }


def test_a_changed_checkout_seen_from_a_subfolder(checkout: Path) -> None:
    (checkout / "model.py").write_text("layers = 6\n")
    (checkout / "inner").mkdir()
    (checkout / "inner" / "notes.txt").write_text("new\n")
    state = provenance.git(checkout / "inner")
    assert state["dirty"] is True
    assert state["untracked"] == 1
    assert "+layers = 6" in state["diff"]


def test_detached_head_and_no_commit(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run_git(checkout, "checkout", "-q", "--detach")
    assert provenance.git(checkout)["branch"] is None
    empty = tmp_path_factory.mktemp("empty")
    run_git(empty, "init", "-q")
    assert provenance.git(empty)["note"] == "no commit yet"


def test_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    state = provenance.git(tmp_path)
    assert state["note"] == "not a git checkout"
    assert state["commit"] is None


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git(tmp_path)["note"] == "git is not installed"
    assert provenance.collect()["git"]["note"] == "git is not installed"


def test_what_cannot_be_learnt_does_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise OSError("no such machine")

    monkeypatch.setattr(provenance, "cpu_name", broken)
    assert provenance.collect()["hardware"]["cpu"] == {"unknown": "OSError: no such machine"}


@pytest.mark.parametrize(
    "line",
    [
        'WANDB_API_KEY = "0123456789abcdef"',
        "password: hunter2",
        '  "client_secret": "x",',
        "export HF_TOKEN=abc",
        'token = "abcdefghij0123456789"',
        "url = https://user:pass@example.org/x",
        "key = 'ghp_0123456789012345678901234567'",
    ],
)
def test_lines_that_look_like_secrets_stay_home(line: str) -> None:
    diff, note = provenance.clean_diff(f"+before\n+{line}\n+after")
    assert diff == f"+before\n+{provenance.LEFT_OUT}\n+after"
    assert note is not None
    assert "secrets" in note


def test_a_private_key_stays_home_whole() -> None:
    key = ["-----BEGIN RSA PRIVATE KEY-----", "MIIEvQIBADANBg", "-----END RSA PRIVATE KEY-----"]
    diff, note = provenance.clean_diff("\n".join(f"+{line}" for line in [*key, "after"]))
    assert diff == "\n".join([*[f"+{provenance.LEFT_OUT}"] * 3, "+after"])
    assert note is not None
    assert note.startswith("3 lines")


@pytest.mark.parametrize(
    "line",
    ["tokens = tokenizer.encode(text)", "def forward(self, tokens: Tensor)", "eos_token: int = 3", "key = k_proj(x)"],
)
def test_ordinary_code_of_this_field_is_kept(line: str) -> None:
    assert provenance.clean_diff(f"+{line}") == (f"+{line}", None)


def test_a_long_diff_is_cut_and_says_so() -> None:
    diff, note = provenance.clean_diff("+é\n" * provenance.DIFF_LIMIT)
    assert 0 < len(diff.encode()) <= provenance.DIFF_LIMIT
    assert note == "the diff is cut at 64 kB"


def test_flags_that_look_like_secrets_are_masked() -> None:
    argv = ["tinytf", "fit", "--tracking.wandb.api_key=abc", "--auth_token", "abc", "--data.tokenizer", "char", "-x"]
    assert provenance.masked(argv) == [
        "tinytf", "fit", "--tracking.wandb.api_key=***", "--auth_token", "***", "--data.tokenizer", "char", "-x",
    ]  # fmt: skip
    assert provenance.masked(["https://me:word@host/x"]) == ["***"]
