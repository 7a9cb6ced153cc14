"""What `tinytf export` leaves in a folder, and what it never leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import LOOSE, Exported, save_checkpoint, small_model

from tinytf.commands.export import run as run_export
from tinytf.errors import UserError
from tinytf.export import folder, formats, manifest, pt2, torchscript
from tinytf.export.formats import DEFAULT, FORMATS, GROUPS
from tinytf.export.subject import Subject, sha256


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_format_passes_where_its_runtime_is_installed(exported: Exported) -> None:
    assert exported.content["failed"] == []
    assert exported.code == 0
    assert {entry["name"] for entry in exported.content["artefacts"]} >= {"torchscript", "pt2"}
    for entry in exported.content["artefacts"]:
        installed = not FORMATS[entry["name"]].missing("running")
        assert entry["status"] == ("passed" if installed else "not verified")
        assert entry["verified"] == installed
        assert ("measured" in entry) == installed


def test_the_folder_holds_what_the_manifest_says_and_nothing_else(exported: Exported) -> None:
    listed = {entry["file"] for entry in exported.content["artefacts"]}
    beside = {"export.json", "evaluation.npy", "tokenizer.json", "config.json"}
    weights = exported.content["reference"]["file"]
    assert files(exported.folder) == listed | beside | {weights.split("/")[0]}
    assert sha256(exported.folder / weights) == exported.content["reference"]["sha256"]
    for entry in exported.content["artefacts"]:
        for name, digest in entry["sha256"].items():
            assert sha256(exported.folder / name) == digest


def test_the_manifest_names_checkpoint_text_and_versions(exported: Exported) -> None:
    content = exported.content
    assert content["checkpoint"] == {
        "path": str(exported.checkpoint.resolve()),
        "sha256": sha256(exported.checkpoint),
        "step": 7,
    }
    assert content["evaluation"]["source"] == "file held_out.txt"
    assert content["evaluation"]["tokens"] > 500
    assert content["versions"]["torch"] == torch.__version__
    assert content["machine"]["threads"] == 1
    assert content["model"]["parameters"] > 0
    assert content["thresholds"]["fp32"]["max_abs"] == 1e-4


def test_rounded_artefacts_are_smaller(exported: Exported) -> None:
    if FORMATS["onnx-int8"].missing("writing"):
        pytest.skip("onnx is not installed")
    graph = 80_000  # nodes and the rotary tables, which are not rounded
    whole = exported.entry("onnx-kv")["bytes"] - graph
    assert exported.entry("onnx-int8")["bytes"] - graph < whole / 3
    assert exported.entry("onnx-int4")["bytes"] - graph < whole / 4


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


def test_an_artefact_past_its_threshold_fails_the_command_and_is_not_left(
    subject: Subject, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A writer with a bug: it exports a model of which one weight is off by 0.01."""
    write = torchscript.write

    def broken(subject: Subject, path: Path, base: Path | None) -> None:
        other = small_model(subject.model.config.vocab_size)
        other.load_state_dict(subject.model.state_dict())
        other.layers[0].mlp.up_proj.weight.data[3, 5] += 0.01
        write(Subject(other, subject.tokenizer), path, base)

    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "torchscript") == 0
    monkeypatch.setattr(torchscript, "write", broken)
    assert export(checkpoint, "torchscript,pt2") == 1
    assert "max_abs" in capsys.readouterr().out
    assert files(folder) == {
        "model.pt2", "reference.safetensors", "export.json", "evaluation.npy", "tokenizer.json", "config.json"
    }  # fmt: skip
    content = manifest.read(folder)
    assert [entry["name"] for entry in content["artefacts"]] == ["pt2"]
    assert [entry["name"] for entry in content["failed"]] == ["torchscript"]
    assert content["failed"][0]["measured"]["max_abs"] > 1e-4


def test_nothing_is_made_from_an_fp32_file_that_failed(
    subject: Subject, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    from tinytf.export import gguf_file

    right = gguf_file.to_llama_cpp
    swapped = {"layers.1.mlp.gate_proj.weight": 0.5}
    monkeypatch.setattr(
        gguf_file, "to_llama_cpp", lambda name, weight, config: right(name, weight, config) * swapped.get(name, 1.0)
    )
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    assert export(checkpoint, "gguf-q8_0") == 1
    content = manifest.read(checkpoint.parent / "export")
    assert content["failed"][0]["reasons"] == ["gguf-f32, which it is made from, failed"]
    assert not list((checkpoint.parent / "export").glob("*.gguf"))


def test_a_runtime_that_is_not_installed_is_never_a_pass(
    subject: Subject, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("gguf")
    there = formats.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "llama_cpp" else there(name))
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    assert export(checkpoint, "gguf-f32") == 0
    entry = manifest.read(checkpoint.parent / "export")["artefacts"][0]
    assert (entry["status"], entry["verified"]) == ("not verified", False)
    assert "measured" not in entry
    table = capsys.readouterr().out
    assert "not verified: install llama-cpp-python to verify it" in table
    assert "passed" not in table


def test_a_crash_in_one_format_shows_its_traceback_and_spares_the_others(
    subject: Subject, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def crash(subject: Subject, path: Path, base: Path | None) -> None:
        path.write_text("half")
        raise KeyError("an exporter's bug")

    monkeypatch.setattr(pt2, "write", crash)
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    assert export(checkpoint, "pt2,torchscript") == 1
    assert "Traceback" in capsys.readouterr().err
    left = files(checkpoint.parent / "export")
    assert "model.torchscript.pt" in left
    assert "model.pt2" not in left


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


def stopped_at(name: str) -> Callable[[Path], None]:
    remove = folder.remove

    def stop_or_remove(path: Path) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        remove(path)

    return stop_or_remove


def test_the_validation_split_is_the_default_text(
    subject: Subject, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinytf.data.prepare import TextSettings, prepare

    data = {
        "corpus": str(text_file), "tokenizer": "char", "vocab_size": 300, "val_fraction": 0.2, "test_fraction": 0.0,
        "val_corpus": None, "test_corpus": None, "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
    prepared = prepare(TextSettings(**data), subject.tokenizer)
    path = save_checkpoint(tmp_path / "run" / "best.ckpt", subject, data={**data, "batch_size": 4})
    saved = torch.load(path, weights_only=True)
    saved["tinytf"]["data"] = prepared.fingerprint
    torch.save(saved, path)
    flags = ["--ckpt_path", str(path), "--formats", "torchscript", "--json"]
    assert run_export(flags) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["evaluation"]["source"] == f"validation split of {text_file}"
    held_out = len(prepared.store.split("val")) - 1
    assert held_out - 48 < content["evaluation"]["tokens"] <= held_out
    saved["tinytf"]["data"]["sha256"] = "another"
    torch.save(saved, path)
    with pytest.raises(UserError, match="has changed since training"):
        run_export(flags)


def test_without_data_settings_it_asks_for_text(exported: Exported) -> None:
    with pytest.raises(UserError, match="give held-out text with --text FILE"):
        run_export(["--ckpt_path", str(exported.checkpoint), "--formats", "torchscript"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--formats", "onxx"], r"unknown format 'onxx', did you mean onnx\?"),
        (["--formats", "coreml"], "Formats: huggingface, onnx, onnx-kv"),
        (["--formats", ","], "--formats is empty"),
        (["--threshold", "int8.kk=1"], "did you mean int8.kl"),
        (["--threshold", "int8.kl=low"], "'low' is not a number"),
        (["--text", "no.such.file"], "--text no.such.file: No such file"),
        (["--threads", "0"], "must be at least 1"),
        (["--format", "onnx"], "did you mean --formats"),
    ],
)
def test_wrong_input_is_one_line(flags: list[str], said: str, exported: Exported) -> None:
    with pytest.raises(UserError, match=said) as caught:
        run_export(["--ckpt_path", str(exported.checkpoint), *flags])
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs safetensors, onnx, onnxscript: pip install 'tinytf\[export\]'"):
        formats.choose(["onnx"])


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gguf", {"d_model": 48, "n_heads": 4}, "blocks are of 32 values, which do not divide d_model 48"),
        ("gguf-q8_0", {"d_ff": 100}, "which do not divide d_ff 100"),
        ("onnx-int4", {"d_model": 48, "n_heads": 4}, "which do not divide d_model 48"),
        ("pt2", {"max_seq_len": 2}, "format pt2 .* traced with 3 tokens, and max_seq_len is 2; leave it out"),
        ("onnx", {"max_seq_len": 1}, "and max_seq_len is 1"),
    ],
)
def test_a_model_that_a_format_cannot_express_is_refused_before_anything_is_written(
    name: str, changes: dict[str, Any], said: str, subject: Subject, export: Callable[..., int], tmp_path: Path
) -> None:
    if any(FORMATS[member].missing("writing") for member in GROUPS.get(name, (name,))):
        pytest.skip(f"{name} cannot be written here")
    odd = Subject(small_model(subject.model.config.vocab_size, **changes), subject.tokenizer)
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", odd)
    with pytest.raises(UserError, match=said):
        export(checkpoint, f"huggingface,{name}")
    assert not (checkpoint.parent / "export").exists()


def test_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_export(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in [*FORMATS, *GROUPS])


def test_the_defaults_are_formats() -> None:
    assert set(DEFAULT) <= set(FORMATS) | set(GROUPS)
    assert all(format.base is None or format.base in FORMATS for format in FORMATS.values())


def test_json_is_strict_and_the_same_as_the_file(
    subject: Subject, export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", subject)
    assert export(checkpoint, "torchscript", "--json") == 0

    def refuse(word: str) -> None:
        raise AssertionError(word)

    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert printed == json.loads((checkpoint.parent / "export" / "export.json").read_text())


def test_a_manifest_with_nan_is_still_json(tmp_path: Path) -> None:
    manifest.write(tmp_path, {"format": 1, "numbers": [float("nan"), float("-inf"), 1.5]})
    assert manifest.read(tmp_path)["numbers"] == ["NaN", "-Infinity", 1.5]


def test_a_loosened_threshold_is_recorded(exported: Exported) -> None:
    for setting in LOOSE:
        name, _, value = setting.partition("=")
        precision, _, limit = name.partition(".")
        assert exported.content["thresholds"][precision][limit] == float(value)
