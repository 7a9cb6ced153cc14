"""A folder with an earlier export: added to, replaced, refused, or stopped half way."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.export.small_model import Exported, save_checkpoint, small_model
from tinytf.errors import UserError
from tinytf.export import manifest
from tinytf.export.folder import publish, staging_folder
from tinytf.export.formats.huggingface import HuggingFace
from tinytf.export.formats.torch_programs import Pt2
from tinytf.utils.files import sha256_of
from tinytf.weights.checkpoint import LoadedModel


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_second_export_keeps_the_formats_it_does_not_make(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "huggingface") == 0
    first = sha256_of(folder / "huggingface" / "model.safetensors")
    assert export(checkpoint, "torchscript") == 0
    assert sha256_of(folder / "huggingface" / "model.safetensors") == first
    assert [entry["name"] for entry in manifest.read(folder)["artifacts"]] == ["huggingface", "torchscript"]


def test_another_checkpoint_of_the_run_replaces_the_export_and_says_so(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "torchscript") == 0
    save_checkpoint(checkpoint, LoadedModel(small_model(loaded.model.config.vocab_size, n_layers=1), loaded.tokenizer))
    assert export(checkpoint, "huggingface") == 0
    assert "replacing the export of" in capsys.readouterr().err
    assert "model.torchscript.pt" not in files(checkpoint.parent / "export")


def test_an_output_dir_with_another_checkpoints_export_is_refused(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    first = save_checkpoint(tmp_path / "a" / "best.ckpt", loaded)
    assert export(first, "torchscript", "--output_dir", str(folder)) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = save_checkpoint(tmp_path / "b" / "best.ckpt", loaded, more=1)
    with pytest.raises(UserError, match="export of another checkpoint"):
        export(other, "torchscript", "--output_dir", str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_output_dir_that_cannot_be_made_is_one_line(exported: Exported, export: Callable[..., int]) -> None:
    with pytest.raises(UserError, match="--output_dir /proc/export: it cannot be written to"):
        export(exported.checkpoint, "torchscript", "--output_dir", "/proc/export")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_dir_that_holds_something_else_is_refused(
    kind: str, exported: Exported, export: Callable[..., int], tmp_path: Path
) -> None:
    place = tmp_path / "thesis"
    stranger = place / "chapter.txt" if kind == "folder" else place
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text("years of work")
    with pytest.raises(UserError, match="--output_dir"):
        export(exported.checkpoint, "torchscript", "--output_dir", str(place))
    assert stranger.read_text() == "years of work"


def test_what_a_killed_export_left_is_cleaned_up_by_the_next(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    (checkpoint.parent / ".export.tmp-123-abc" / "bundle").mkdir(parents=True)
    assert export(checkpoint, "torchscript") == 0
    assert files(checkpoint.parent) == {"best.ckpt", "export"}


def test_an_interrupted_export_leaves_the_earlier_one_as_it_was(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "torchscript,huggingface") == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(Pt2, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, "torchscript,pt2")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_artifact_whose_new_writing_crashes_keeps_its_proven_file(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "pt2") == 0
    proven = manifest.read(folder)["artifacts"]

    def crash(self: object, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        path.write_text("half")
        raise KeyError("an exporter's bug")

    monkeypatch.setattr(Pt2, "write", crash)
    assert export(checkpoint, "pt2,torchscript") == 1
    content = manifest.read(folder)
    assert content["artifacts"][0] == proven[0]
    assert sha256_of(folder / "model.pt2") == proven[0]["sha256"]["model.pt2"]
    assert [entry["name"] for entry in content["failed"]] == ["pt2"]


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_a_crash_spares_no_file_that_is_not_whole(
    harm: str, loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "huggingface") == 0
    if harm == "gone":
        shutil.rmtree(folder / "huggingface")
    else:
        (folder / "huggingface" / "config.json").write_text("{}")
    monkeypatch.setattr(HuggingFace, "write", lambda *_: 1 / 0)
    assert export(checkpoint, "huggingface,torchscript") == 1
    content = manifest.read(folder)
    assert [entry["name"] for entry in content["artifacts"]] == ["torchscript"]
    assert content["reference"]["file"] == "reference.safetensors"
    assert not (folder / "huggingface").exists()


def test_what_was_taken_away_by_hand_is_no_longer_listed(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "huggingface") == 0
    shutil.rmtree(folder / "huggingface")
    assert export(checkpoint, "torchscript") == 0
    assert "huggingface is gone, so it is no longer listed" in capsys.readouterr().err
    content = manifest.read(folder)
    assert [entry["name"] for entry in content["artifacts"]] == ["torchscript"]
    assert content["reference"]["file"] == "reference.safetensors"


def test_what_was_changed_by_hand_is_not_passed_on_as_proven(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "torchscript") == 0
    (folder / "model.torchscript.pt").write_bytes(b"mine")
    with pytest.raises(UserError, match="changed since it was exported; add torchscript to --formats, or delete"):
        export(checkpoint, "huggingface")
    assert (folder / "model.torchscript.pt").read_bytes() == b"mine"
    assert export(checkpoint, "huggingface,torchscript") == 0


def test_a_second_export_into_a_folder_in_use_is_refused(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    with staging_folder(checkpoint.parent / "export") as staging:
        (staging / "model.pt2").write_text("half")
        with pytest.raises(UserError, match="another export is writing to it"):
            export(checkpoint, "torchscript")
        assert (staging / "model.pt2").read_text() == "half"
    assert export(checkpoint, "torchscript") == 0


def bundle_of(folder: Path, text: str) -> Path:
    (folder / "huggingface").mkdir(parents=True)
    for name in ("export.json", "huggingface/config.json"):
        (folder / name).write_text(text)
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("calls", range(40))
def test_killed_at_any_instant_one_whole_bundle_is_found_again(calls: int, tmp_path: Path) -> None:
    """The child dies before its n-th call that changes or syncs the disk."""
    place = bundle_of(tmp_path / "run" / "export", "old")
    child = os.fork()
    if child == 0:
        die_at_call(calls)
        with staging_folder(place) as staging:
            publish(bundle_of(staging / "bundle", "new"), place)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    with staging_folder(place):
        found = {path.read_text() for path in place.rglob("*") if path.is_file()}
        assert found in ({"old"}, {"new"})
        assert files(place) == {"export.json", "huggingface"}
    assert files(place.parent) == {"export"}
    if calls == 39:
        assert (status, found) == (0, {"new"}), "all instants are seen"


def die_at_call(calls: int) -> None:
    """Count every call that changes or syncs the disk, and end the process before this one."""
    left = [calls]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
            return function(*arguments, **settings)

        return call

    for name in ("rename", "mkdir", "unlink", "rmdir", "fsync", "link"):
        setattr(os, name, counted(getattr(os, name)))


def test_a_rename_that_fails_puts_the_earlier_bundle_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, rename = bundle_of(tmp_path / "export", "old"), Path.rename

    def busy(path: Path, target: Path) -> Path:
        if path.name == "bundle":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", busy)
    with staging_folder(place) as staging, pytest.raises(UserError, match="Device or resource busy"):
        publish(bundle_of(staging / "bundle", "new"), place)
    assert (place / "export.json").read_text() == "old"
    assert files(tmp_path) == {"export"}


def test_what_the_user_put_into_the_folder_stays(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "huggingface,torchscript") == 0
    (folder / "notes" / "empty").mkdir(parents=True)
    (folder / "notes" / "idea.md").write_text("mine")
    (folder / "huggingface" / ".gitattributes").write_text("mine too")
    (folder / "latest").symlink_to("model.torchscript.pt")
    for name in ("best.ckpt", "other.ckpt"):  # Added to, then replaced by that of another checkpoint.
        other = save_checkpoint(tmp_path / "run" / name, loaded, more=name)
        assert export(other, "torchscript") == 0
        assert (folder / "notes" / "idea.md").read_text() == "mine"
        assert (folder / "notes" / "empty").is_dir()
        assert (folder / "huggingface" / ".gitattributes").read_text() == "mine too"
        assert (folder / "latest").is_symlink()


def test_a_file_of_the_users_under_one_of_our_names_is_not_overwritten(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "torchscript") == 0
    (folder / "model.pt2").write_text("mine")
    with pytest.raises(UserError, match=r"model\.pt2: it is yours: move it away to export pt2"):
        export(checkpoint, "pt2")
    assert export(checkpoint, "torchscript") == 0
    assert (folder / "model.pt2").read_text() == "mine"


def test_a_chat_template_of_the_users_is_not_overwritten(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "torchscript") == 0
    mine = checkpoint.parent / "export" / "chat_template.jinja"
    mine.write_text("mine")
    assert export(checkpoint, "torchscript") == 0
    assert mine.read_text() == "mine"
    save_checkpoint(checkpoint, LoadedModel(loaded.model, loaded.tokenizer, {"chat_template": "the model's"}))
    with pytest.raises(UserError, match=r"chat_template\.jinja: it is yours: move it away"):
        export(checkpoint, "torchscript")
    assert mine.read_text() == "mine"


def test_a_default_folder_that_is_a_link_is_refused(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    elsewhere = bundle_of(tmp_path / "elsewhere", "{}")
    (checkpoint.parent / "export").symlink_to(elsewhere)
    with pytest.raises(UserError, match="it is a link"):
        export(checkpoint, "torchscript")
    assert (elsewhere / "export.json").read_text() == "{}"


def test_kept_artifacts_are_linked_where_the_file_system_can(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    weights = checkpoint.parent / "export" / "huggingface" / "model.safetensors"
    assert export(checkpoint, "huggingface") == 0
    inode = weights.stat().st_ino
    assert export(checkpoint, "torchscript") == 0
    assert weights.stat().st_ino == inode

    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    before = weights.read_bytes()
    assert export(checkpoint, "torchscript") == 0
    assert weights.read_bytes() == before
