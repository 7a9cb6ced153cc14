"""A folder with an earlier export: added to, replaced, refused, or stopped half way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.export.small_model import Exported, save_checkpoint, small_model
from tinytf.errors import UserError
from tinytf.export import folder, huggingface, manifest, pt2
from tinytf.export.subject import Subject, sha256


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_second_export_keeps_the_formats_it_does_not_make(
    subject: Subject, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "huggingface") == 0
    first = sha256(folder / "huggingface" / "model.safetensors")
    assert export(checkpoint, "torchscript") == 0
    assert sha256(folder / "huggingface" / "model.safetensors") == first
    assert [entry["name"] for entry in manifest.read(folder)["artefacts"]] == ["huggingface", "torchscript"]


def test_another_checkpoint_of_the_run_replaces_the_export_and_says_so(
    subject: Subject, export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    assert export(checkpoint, "torchscript") == 0
    save_checkpoint(checkpoint, Subject(small_model(subject.model.config.vocab_size, n_layers=1), subject.tokenizer))
    assert export(checkpoint, "huggingface") == 0
    assert "replacing the export of" in capsys.readouterr().err
    assert "model.torchscript.pt" not in files(checkpoint.parent / "export")


def test_an_output_dir_with_another_checkpoints_export_is_refused(
    subject: Subject, export: Callable[..., int], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    first = save_checkpoint(tmp_path / "a" / "best.ckpt", subject)
    assert export(first, "torchscript", "--output_dir", str(folder)) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = save_checkpoint(tmp_path / "b" / "best.ckpt", subject, more=1)
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
    subject: Subject, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    (checkpoint.parent / "export" / ".partial-killed").mkdir(parents=True)
    assert export(checkpoint, "torchscript") == 0
    assert ".partial-killed" not in files(checkpoint.parent / "export")


def test_an_interrupted_export_leaves_the_earlier_one_as_it_was(
    subject: Subject, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "torchscript,huggingface") == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(pt2, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, "torchscript,pt2")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_stopped_while_files_take_their_names_the_folder_is_still_an_export(
    subject: Subject, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "torchscript,huggingface") == 0
    with monkeypatch.context() as patch:
        # The file is the first thing to be taken away.
        patch.setattr("tinytf.export.folder.remove", stopped_at("model.torchscript.pt"))
        with pytest.raises(KeyboardInterrupt):
            export(checkpoint, "torchscript")
    assert [entry["name"] for entry in manifest.read(folder)["artefacts"]] == ["huggingface"]
    assert export(checkpoint, "torchscript") == 0
    assert [entry["name"] for entry in manifest.read(folder)["artefacts"]] == ["huggingface", "torchscript"]


def test_an_artefact_whose_new_writing_crashes_keeps_its_proven_file(
    subject: Subject, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "pt2") == 0
    proven = manifest.read(folder)["artefacts"]

    def crash(subject: Subject, path: Path, base: Path | None) -> None:
        path.write_text("half")
        raise KeyError("an exporter's bug")

    monkeypatch.setattr(pt2, "write", crash)
    assert export(checkpoint, "pt2,torchscript") == 1
    content = manifest.read(folder)
    assert content["artefacts"][0] == proven[0]
    assert sha256(folder / "model.pt2") == proven[0]["sha256"]["model.pt2"]
    assert [entry["name"] for entry in content["failed"]] == ["pt2"]


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_a_crash_spares_no_file_that_is_not_whole(
    harm: str, subject: Subject, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "huggingface") == 0
    if harm == "gone":
        shutil.rmtree(folder / "huggingface")
    else:
        (folder / "huggingface" / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface, "write", lambda *_: 1 / 0)
    assert export(checkpoint, "huggingface,torchscript") == 1
    content = manifest.read(folder)
    assert [entry["name"] for entry in content["artefacts"]] == ["torchscript"]
    assert content["reference"]["file"] == "reference.safetensors"
    assert not (folder / "huggingface").exists()


def test_what_was_taken_away_by_hand_is_no_longer_listed(
    subject: Subject, export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "huggingface") == 0
    shutil.rmtree(folder / "huggingface")
    assert export(checkpoint, "torchscript") == 0
    assert "huggingface is gone, so it is no longer listed" in capsys.readouterr().err
    content = manifest.read(folder)
    assert [entry["name"] for entry in content["artefacts"]] == ["torchscript"]
    assert content["reference"]["file"] == "reference.safetensors"


def test_what_was_changed_by_hand_is_not_passed_on_as_proven(
    subject: Subject, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "torchscript") == 0
    (folder / "model.torchscript.pt").write_bytes(b"mine")
    with pytest.raises(UserError, match="changed since it was exported; add torchscript to --formats, or delete"):
        export(checkpoint, "huggingface")
    assert (folder / "model.torchscript.pt").read_bytes() == b"mine"
    assert export(checkpoint, "huggingface,torchscript") == 0


def test_a_second_export_into_a_folder_in_use_is_refused(
    subject: Subject, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    place = checkpoint.parent / "export"
    with folder.partial_folder(place) as partial:
        (partial / "model.pt2").write_text("half")
        with pytest.raises(UserError, match="another export is writing into it"):
            export(checkpoint, "torchscript")
        assert (partial / "model.pt2").read_text() == "half"
    assert export(checkpoint, "torchscript") == 0


def test_a_manifest_that_could_not_be_written_does_not_lock_the_folder(
    subject: Subject, export: Callable[..., int], tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    place = checkpoint.parent / "export"
    place.mkdir()
    (place / ".export.json.tmp").write_text("{")
    assert export(checkpoint, "torchscript") == 0
    assert ".export.json.tmp" not in files(place)


def stopped_at(name: str) -> Callable[[Path], None]:
    remove = folder.remove

    def stop_or_remove(path: Path) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        remove(path)

    return stop_or_remove
