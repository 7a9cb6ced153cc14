"""What cannot be exported, each in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.export.small_model import Exported, save_checkpoint, small_model
from tinytf.cli import verify
from tinytf.cli.export import run as run_export
from tinytf.errors import UserError
from tinytf.export import formats, manifest
from tinytf.export.formats import DEFAULT, FORMATS, GROUPS
from tinytf.weights.checkpoint import LoadedModel


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
        (["--threshold", "int8.kl=low"], "'low' is not a finite number"),
        (["--text", "no.such.file"], "--text no.such.file: No such file"),
        (["--text", ""], "--text is empty"),
        (["--output_dir="], "--output_dir is empty"),
        (["--threads", "0"], "must be at least 1"),
        (["--format", "onnx"], "did you mean --formats"),
    ],
)
def test_wrong_input_is_one_line(flags: list[str], said: str, exported: Exported) -> None:
    with pytest.raises(UserError, match=said) as caught:
        run_export(["--ckpt_path", str(exported.checkpoint), *flags])
    assert "\n" not in str(caught.value)


def test_a_chat_template_that_no_file_can_hold_is_one_line(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    stranger = LoadedModel(loaded.model, loaded.tokenizer, {"chat_template": "\ud800"})
    with pytest.raises(UserError, match="its chat_template cannot be written as UTF-8"):
        export(save_checkpoint(tmp_path / "run" / "best.ckpt", stranger), "torchscript")


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
        ("onnx", {"max_seq_len": 1}, "max_seq_len is 1: a model that reads one token"),
    ],
)
def test_a_model_that_a_format_cannot_express_is_refused_before_anything_is_written(
    name: str, changes: dict[str, Any], said: str, loaded: LoadedModel, export: Callable[..., int], tmp_path: Path
) -> None:
    if any(FORMATS[member].missing("writing") for member in GROUPS.get(name, (name,))):
        pytest.skip(f"{name} cannot be written here")
    odd = LoadedModel(small_model(loaded.model.config.vocab_size, **changes), loaded.tokenizer)
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", odd)
    with pytest.raises(UserError, match=said):
        export(checkpoint, f"default,{name}")
    assert not (checkpoint.parent / "export").exists()


@pytest.mark.skipif(bool(FORMATS["gguf-f32"].missing("writing")), reason="gguf is not installed")
def test_a_default_format_that_the_model_cannot_be_in_is_left_out_and_said(
    loaded: LoadedModel,
    export: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(GROUPS, DEFAULT, ("torchscript", "gguf-f32", "gguf-q8_0"))
    odd = LoadedModel(small_model(loaded.model.config.vocab_size, d_model=48), loaded.tokenizer)
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", odd)
    why = "its blocks are of 32 values, which do not divide d_model 48"
    assert export(checkpoint, DEFAULT) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == f"tinytf: note: gguf-q8_0 skipped: the model cannot be in it, because {why}"
    assert f"\ngguf-q8_0: skipped: {why}" in out
    assert [row.split()[-1] for row in out.splitlines() if row.startswith("gguf-q8_0 ")] == ["skipped"]
    folder = checkpoint.parent / "export"
    content = manifest.read(folder)
    assert content["skipped"] == [{"name": "gguf-q8_0", "reason": why}]
    assert {entry["name"] for entry in content["artifacts"]} == {"torchscript", "gguf-f32"}
    assert verify.run([str(folder)]) == 0
    assert f"gguf-q8_0: skipped: {why}" in capsys.readouterr().out


def test_a_model_that_no_default_format_can_express_is_refused(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GROUPS, DEFAULT, ("pt2", "torchscript"))
    odd = LoadedModel(small_model(loaded.model.config.vocab_size, max_seq_len=2), loaded.tokenizer)
    with pytest.raises(UserError, match="no format can express this model: it is traced with 3 tokens"):
        export(save_checkpoint(tmp_path / "run" / "best.ckpt", odd), DEFAULT)
