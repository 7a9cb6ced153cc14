"""Provenance: what ran, without a secret, and with a word about all that could not be found out."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path

import pytest
import torch

from tests.stress.campaign import prepare, run
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
        "changed": [],
        "untracked": 0,
        "note": None,
    }


def test_a_changed_checkout_seen_from_a_subfolder(checkout: Path) -> None:
    (checkout / "model.py").write_text("layers = 6\n")
    (checkout / "inner").mkdir()
    (checkout / "inner" / "notes.txt").write_text("new\n")
    state = provenance.git(checkout / "inner")
    assert state["dirty"] is True
    assert state["untracked"] == 1
    assert state["changed"] == ["model.py"]


def test_the_names_of_changed_files_are_whole_and_bounded(checkout: Path) -> None:
    names = [f"a file {number:03} of mine.py" for number in range(provenance.MOST_FILES + 5)]
    for name in names:
        (checkout / name).touch()
    run_git(checkout, "add", ".")
    (checkout / names[0]).write_text("both staged and changed")
    state = provenance.git(checkout)
    assert state["changed"] == names[: provenance.MOST_FILES]
    assert state["note"] == "5 more files are changed"


def test_an_unmerged_file_is_a_changed_one(checkout: Path) -> None:
    run_git(checkout, "checkout", "-qb", "other")
    for branch, layers in (("other", 6), ("trunk", 8)):
        run_git(checkout, "checkout", "-q", branch)
        (checkout / "model.py").write_text(f"layers = {layers}\n")
        run_git(checkout, "commit", "-qam", branch)
    with pytest.raises(subprocess.CalledProcessError):
        run_git(checkout, "merge", "other")
    assert provenance.git(checkout)["changed"] == ["model.py"]


def test_the_patch_of_uncommitted_changes_applies(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    patch = tmp_path_factory.mktemp("run") / "uncommitted.patch"
    provenance.write_uncommitted_patch(patch, checkout)
    assert not patch.exists()
    (checkout / "model.py").write_text("layers = 6\n")
    provenance.write_uncommitted_patch(patch, checkout)
    run_git(checkout, "checkout", "-q", "model.py")
    run_git(checkout, "apply", str(patch))
    assert (checkout / "model.py").read_text() == "layers = 6\n"


def test_git_that_does_not_answer_ends_no_run(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (checkout / "bin").mkdir()
    (checkout / "bin" / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (checkout / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{checkout / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.1)
    monkeypatch.setattr(logging.getLogger("tinytf"), "propagate", True)
    assert provenance.git(checkout)["note"] == "git did not answer within 0 s"
    provenance.write_uncommitted_patch(checkout / "uncommitted.patch", checkout)
    assert "tracking.git_diff: no uncommitted.patch is written" in caplog.text
    assert not (checkout / "uncommitted.patch").exists()


def test_detached_head_and_no_commit(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run_git(checkout, "checkout", "-q", "--detach")
    assert provenance.git(checkout)["branch"] is None
    empty = tmp_path_factory.mktemp("empty")
    run_git(empty, "init", "-q")
    assert provenance.git(empty)["note"] == "no commit yet"


def test_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    state = provenance.git(tmp_path)
    assert state["note"].startswith("fatal: not a git repository")
    assert state["commit"] is None


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git(tmp_path)["note"] == "git is not installed"
    assert provenance.collect()["git"]["note"] == "git is not installed"


def test_what_cannot_be_found_out_does_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise OSError("no such machine")

    monkeypatch.setattr(provenance, "cpu_name", broken)
    assert provenance.collect()["hardware"]["cpu"] == {"unknown": "OSError: no such machine"}


def test_flags_that_look_like_secrets_are_masked() -> None:
    argv = ["tinytf", "fit", "--tracking.wandb.api_key=abc", "--auth_token", "abc", "--data.tokenizer", "char", "-x"]
    assert provenance.masked(argv) == [
        "tinytf", "fit", "--tracking.wandb.api_key=***", "--auth_token", "***", "--data.tokenizer", "char", "-x",
    ]  # fmt: skip
    assert provenance.masked(["--max_new_tokens=5", "--hf-token"]) == ["--max_new_tokens=5", "--hf-token"]


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--l", "{class_path: X, init_args: {api_key: S}}"], '{"class_path": "X", "init_args": {"api_key": "***"}}'),
        (["--l", "class_path: X\ninit_args:\n  password: 7"], '{"class_path": "X", "init_args": {"password": "***"}}'),
        (["--l", "[{headers: {Authorization: Bearer S}}]"], '[{"headers": {"Authorization": "***"}}]'),
        (["--x.api_key", "-S"], "***"),
        (["--x.api_key", "-S=7"], "***"),
        (["--x.api_key", "--S 7"], "***"),
        (["--x.password", "12345"], "***"),
        (["--x.passwords+", "S"], "***"),
        (["--x.start_token", "5"], "5"),
        (["--x.api_key", "--name"], "--name"),
        (["--name", "a: {b: c}  # d"], "a: {b: c}  # d"),
        (["--name", "{a"], "{a"),
    ],
)
def test_values_in_yaml_and_values_that_look_like_flags_are_masked(argv: list[str], shown: str) -> None:
    assert provenance.masked(argv) == [argv[0], shown]


def test_addresses_lose_user_and_query() -> None:
    argv = ["--data.corpus=https://me:word@host:80/x.txt?sig=abc#part", '{"uri": "s3://key@bucket/y?z"}', "a?b://"]
    assert provenance.masked(argv) == [
        "--data.corpus=https://***@host:80/x.txt?***", '{"uri": "s3://***@bucket/y?***"}', "a?b://",
    ]  # fmt: skip


def test_a_run_keeps_its_patch_if_it_is_asked_to_and_no_checkpoint_has_it(checkout: Path) -> None:
    prepare(checkout)
    (checkout / "model.py").write_text("layers = 6\n")
    run({"trainer.max_steps": 1, "tracking.git_diff": "true"}, checkout)
    (folder,) = checkout.glob("checkpoints/*/*")
    assert "+layers = 6" in (folder / "uncommitted.patch").read_text()
    entry = torch.load(folder / "last.ckpt", weights_only=True)["tinytf"]
    assert entry["provenance"]["git"]["changed"] == ["model.py"]
    assert "layers = 6" not in str(entry)

    def resume(max_steps: int, layers: int) -> None:
        (checkout / "model.py").write_text(f"layers = {layers}\n")
        run({"trainer.max_steps": max_steps, "tracking.git_diff": "true", "model.schedule": "Constant"}, checkout)

    resume(2, 8)
    resume(2, 10)
    patches = {path.name: path.read_text() for path in folder.glob("*.patch")}
    assert patches.keys() == {"uncommitted.patch", "uncommitted-0000001.patch", "uncommitted-0000002.patch"}
    assert "+layers = 6" in patches["uncommitted.patch"]
    assert "+layers = 8" in patches["uncommitted-0000001.patch"]


def test_a_second_patch_of_one_step_replaces_none(checkout: Path, tmp_path: Path) -> None:
    for layers in (6, 8, 10):
        (checkout / "model.py").write_text(f"layers = {layers}\n")
        provenance.write_uncommitted_patch(tmp_path / "uncommitted.patch", checkout)
    found = {path.name: path.read_text() for path in tmp_path.glob("*.patch")}
    for layers, suffix in ((6, ""), (8, "-2"), (10, "-3")):
        assert f"+layers = {layers}" in found[f"uncommitted{suffix}.patch"]
