"""What `tinytf export` leaves in a folder, and what it never leaves."""

from __future__ import annotations

import errno
import json
import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.small_model import LOOSE, Exported, save_checkpoint, small_model
from tinytf.cli.export import run as run_export
from tinytf.cli.main import main
from tinytf.errors import RunError, UserError
from tinytf.export import formats, manifest
from tinytf.export.formats import FORMATS, GROUPS
from tinytf.export.formats.torch_programs import TORCHSCRIPT, Pt2, TorchScript
from tinytf.utils.files import sha256_of
from tinytf.weights.checkpoint import LoadedModel


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_format_passes_where_its_runtime_is_installed(exported: Exported) -> None:
    assert exported.content["failed"] == []
    assert exported.code == 0
    assert {entry["name"] for entry in exported.content["artifacts"]} >= {"torchscript", "pt2"}
    for entry in exported.content["artifacts"]:
        installed = not FORMATS[entry["name"]].missing("running")
        assert entry["status"] == ("passed" if installed else "not verified")
        assert entry["verified"] == installed
        assert ("measured" in entry) == installed


def test_the_folder_holds_what_the_manifest_says_and_nothing_else(exported: Exported) -> None:
    listed = {entry["file"] for entry in exported.content["artifacts"]}
    companions = {"export.json", "evaluation.npy", "tokenizer.json", "config.json", "README.md"}
    weights = exported.content["reference"]["file"]
    assert files(exported.folder) == listed | companions | {weights.split("/")[0]}
    assert sha256_of(exported.folder / weights) == exported.content["reference"]["sha256"]
    for entry in exported.content["artifacts"]:
        for name, digest in entry["sha256"].items():
            assert sha256_of(exported.folder / name) == digest


def test_it_ends_with_a_command_to_paste_for_each_kind_of_file(
    exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = exported.said.splitlines()
    commands = [shlex.split(line) for line in lines[lines.index("next:") + 1 :]]
    assert lines.index("next:") > lines.index(f"wrote {exported.folder}")
    for command in commands:
        if command[1] == "-c":
            if "transformers" not in command[2] or not FORMATS["huggingface"].missing("running"):
                exec(command[2])
        elif command[1] in ("generate", "verify"):
            assert main(command[1:]) == 0
        elif command[1:4] == ["-m", "http.server", "--directory"]:
            assert Path(command[4], "index.html").is_file()
        else:
            assert command[:2] == ["llama-server", "-m"]
            assert Path(command[2]).is_file()
    shown = capsys.readouterr().out
    assert "torch.Size([1, 2, 37])" in shown
    verify = commands[-1]
    assert (verify[1], verify[-1]) == ("verify", "--trust")
    names = {entry["name"] for entry in exported.content["artifacts"]}
    assert len(commands) == 1 + len({"huggingface", "onnx-kv", "pt2", "web", "gguf-f16"} & names)


def test_the_manifest_names_checkpoint_text_and_versions(exported: Exported) -> None:
    content = exported.content
    assert content["checkpoint"] == {
        "path": str(exported.checkpoint.resolve()),
        "sha256": sha256_of(exported.checkpoint),
        "step": 7,
    }
    assert content["evaluation"]["source"] == "file held_out.txt"
    assert content["evaluation"]["tokens"] > 500
    assert content["versions"]["torch"] == version("torch")  # Without the build (+cu130) that torch itself adds.
    assert content["machine"]["threads"] == 1
    assert content["model"]["parameters"] > 0
    assert content["thresholds"]["fp32"]["max_abs"] == 1e-4


def test_quantized_artifacts_are_smaller(exported: Exported) -> None:
    if FORMATS["onnx-int8"].missing("writing"):
        pytest.skip("onnx is not installed")
    graph = 80_000  # nodes and the rotary tables, which are not quantized
    whole = exported.entry("onnx-kv")["bytes"] - graph
    assert exported.entry("onnx-int8")["bytes"] - graph < whole / 3
    assert exported.entry("onnx-int4")["bytes"] - graph < whole / 4


def test_an_artifact_past_its_threshold_fails_the_command_and_is_not_left(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A writer with a bug: it exports a model with one weight off by 0.01."""
    write = TORCHSCRIPT.write

    def broken(self: object, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        other = small_model(loaded.model.config.vocab_size)
        other.load_state_dict(loaded.model.state_dict())
        other.layers[0].mlp.up_proj.weight.data[3, 5] += 0.01
        write(LoadedModel(other, loaded.tokenizer), path, base)

    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "torchscript") == 0
    monkeypatch.setattr(TorchScript, "write", broken)
    assert export(checkpoint, "torchscript,pt2") == 1
    assert "max_abs" in capsys.readouterr().out
    assert files(folder) == {
        "model.pt2", "reference.safetensors", "export.json", "evaluation.npy", "tokenizer.json", "config.json",
        "README.md",
    }  # fmt: skip
    content = manifest.read(folder)
    assert [entry["name"] for entry in content["artifacts"]] == ["pt2"]
    assert [entry["name"] for entry in content["failed"]] == ["torchscript"]
    assert content["failed"][0]["measured"]["max_abs"] > 1e-4


def test_nothing_is_made_from_an_fp32_file_that_failed(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    from tinytf.export.formats import gguf as gguf_format

    right = gguf_format.to_llama_cpp
    swapped = {"layers.1.mlp.gate_proj.weight": 0.5}
    monkeypatch.setattr(
        gguf_format, "to_llama_cpp", lambda name, weight, config: right(name, weight, config) * swapped.get(name, 1.0)
    )
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "gguf-q8_0") == 1
    content = manifest.read(checkpoint.parent / "export")
    (reason,) = content["failed"][0]["reasons"]
    assert reason.startswith("gguf-f32, which it is made from, failed (tensor blk.1.ffn_gate.weight is not")
    assert not list((checkpoint.parent / "export").glob("*.gguf"))


def test_a_runtime_that_is_not_installed_is_never_a_pass(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("gguf")
    there = formats.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "llama_cpp" else there(name))
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "gguf-f32") == 0
    entry = manifest.read(checkpoint.parent / "export")["artifacts"][0]
    assert (entry["status"], entry["verified"]) == ("not verified", False)
    assert "measured" not in entry
    table = capsys.readouterr().out
    assert "not verified: install llama-cpp-python to verify it" in table
    assert "passed" not in table


def test_a_crash_in_one_format_shows_its_traceback_and_spares_the_others(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def crash(self: object, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        path.write_text("half")
        raise KeyError("an exporter's bug")

    monkeypatch.setattr(Pt2, "write", crash)
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "pt2,torchscript") == 1
    assert "Traceback" in capsys.readouterr().err
    left = files(checkpoint.parent / "export")
    assert "model.torchscript.pt" in left
    assert "model.pt2" not in left


def test_the_validation_split_is_the_default_text(
    loaded: LoadedModel,
    tmp_path: Path,
    text_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tinytf.data.build import prepare
    from tinytf.data.config import CorpusConfig

    data = {
        "corpus": str(text_file), "tokenizer": "char", "vocab_size": 300, "val_fraction": 0.2, "test_fraction": 0.0,
        "val_corpus": None, "test_corpus": None, "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
    prepared = prepare(CorpusConfig(**data), loaded.tokenizer)
    monkeypatch.chdir(tmp_path)  # The user's own run, whose text may be opened.
    path = save_checkpoint(Path("checkpoints/run/version_0/best.ckpt"), loaded, data={**data, "batch_size": 4})
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


def test_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_export(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in [*FORMATS, *GROUPS])


def test_the_members_of_groups_are_formats() -> None:
    assert {member for members in GROUPS.values() for member in members} <= set(FORMATS)
    assert all(format.base is None or format.base in FORMATS for format in FORMATS.values())


def test_json_is_strict_and_the_same_as_the_file(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "torchscript", "--json") == 0

    def refuse(word: str) -> None:
        raise AssertionError(word)

    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert printed == json.loads((checkpoint.parent / "export" / "export.json").read_text())


def test_a_manifest_with_nan_is_still_json(tmp_path: Path) -> None:
    manifest.write(tmp_path, {"numbers": [float("nan"), float("-inf"), 1.5]})
    assert json.loads((tmp_path / "export.json").read_text())["numbers"] == ["NaN", "-Infinity", 1.5]


def test_json_on_the_screen_is_strict_where_a_format_fails(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write = TORCHSCRIPT.write

    def broken(self: object, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        other = small_model(loaded.model.config.vocab_size)
        other.norm.weight.data[0] = float("nan")
        write(LoadedModel(other, loaded.tokenizer), path, base)

    monkeypatch.setattr(TorchScript, "write", broken)
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "torchscript", "--json") == 1
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert printed["failed"][0]["measured"]["kl"] == "NaN"


def test_a_full_disk_is_one_line_and_the_earlier_export_stands(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    folder = checkpoint.parent / "export"
    assert export(checkpoint, "torchscript") == 0
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def full(self: object, loaded: LoadedModel, path: Path, base: Path | None) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Pt2, "write", full)
    with pytest.raises(RunError, match="pt2: the disk is full"):
        export(checkpoint, "torchscript,pt2")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_loosened_threshold_is_recorded(exported: Exported) -> None:
    for setting in LOOSE:
        name, _, value = setting.partition("=")
        precision, _, limit = name.partition(".")
        assert exported.content["thresholds"][precision][limit] == float(value)
