"""A run that ends in an export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import REPOSITORY
from tinytf.cli.main import main
from tinytf.export.formats import DEFAULT, GROUPS

pytest.importorskip("safetensors")
pytest.importorskip("gguf")

SMALL = ["--config", str(REPOSITORY / "configs/tiny.yaml"), "--config", str(REPOSITORY / "configs/export.yaml")]


def test_the_bundle_is_there_proven_and_given_to_the_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinytf.run.loggers.tensorboard import TensorBoard

    given: list[Path] = []
    monkeypatch.setattr(TensorBoard, "log_export", lambda self, folder: given.append(folder))
    monkeypatch.chdir(tmp_path)
    flags = ["--export.formats=[torchscript]", "--trainer.max_steps=4", "--trainer.val_check_interval=4"]
    assert main(["fit", *SMALL, *flags, "--trainer.limit_val_batches=2"]) == 0
    folder = tmp_path / "checkpoints" / "tiny" / "version_0" / "export"
    content = json.loads((folder / "export.json").read_text())
    assert [artifact["name"] for artifact in content["artifacts"]] == ["torchscript"]
    assert content["failed"] == []
    assert given == [folder]
    assert "torchscript" in capsys.readouterr().out


def test_a_format_that_does_not_pass_is_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinytf.export.parity import thresholds

    monkeypatch.setitem(thresholds.THRESHOLDS, "exact", {"max_abs": -1.0})
    monkeypatch.setitem(thresholds.THRESHOLDS, "fp32", {"max_abs": -1.0})
    monkeypatch.chdir(tmp_path)
    flags = ["--export.formats=[torchscript]", "--trainer.max_steps=4", "--trainer.val_check_interval=4"]
    assert main(["fit", *SMALL, *flags, "--trainer.limit_val_batches=2"]) == 1
    assert "export: torchscript did not pass; the checkpoint" in capsys.readouterr().err


def test_a_run_that_stops_early_is_exported_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stopping = "lightning.pytorch.callbacks.EarlyStopping"
    flags = ["--export.formats=[torchscript]", "--trainer.max_steps=40", "--trainer.val_check_interval=4"]
    flags += [f"--trainer.callbacks+={stopping}", "--trainer.callbacks.monitor=val/loss"]
    flags += ["--trainer.callbacks.stopping_threshold=100", "--trainer.limit_val_batches=2"]
    assert main(["fit", *SMALL, *flags]) == 0
    assert (tmp_path / "checkpoints" / "tiny" / "version_0" / "export" / "model.torchscript.pt").exists()


def test_the_best_checkpoint_is_the_runs_own_if_the_user_adds_a_model_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trainer.checkpoint_callback is the first of all, and the user's come before the run's."""
    monkeypatch.chdir(tmp_path)
    flags = ["--export.formats=[torchscript]", "--trainer.max_steps=4", "--trainer.val_check_interval=4"]
    flags += ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.dirpath=other"]
    assert main(["fit", *SMALL, *flags, "--trainer.limit_val_batches=2"]) == 0
    run_dir = tmp_path / "checkpoints" / "tiny" / "version_0"
    assert (run_dir / "export" / "model.torchscript.pt").exists()
    end = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][-1]
    assert (run_dir / end["best_checkpoint"]).resolve() == (run_dir / "best.ckpt").resolve()


def test_a_model_that_a_format_cannot_express_is_found_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *SMALL, "--export.formats=[gguf]", "--model.d_ff=100"]) == 2
    assert "do not divide d_ff 100; leave it out of --formats" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_a_default_format_that_the_model_cannot_be_in_is_said_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(GROUPS, DEFAULT, ("torchscript", "gguf-q8_0"))
    monkeypatch.chdir(tmp_path)
    flags = ["--export.at_end=true", "--model.d_ff=100", "--trainer.max_steps=4", "--trainer.val_check_interval=4"]
    assert main(["fit", *SMALL[:2], *flags, "--trainer.limit_val_batches=2"]) == 0
    lines = capsys.readouterr().err.splitlines()
    skipped = [number for number, line in enumerate(lines) if "note: gguf-q8_0 skipped" in line]
    assert skipped[0] < min(number for number, line in enumerate(lines) if line.startswith("step "))
    content = json.loads(next((tmp_path / "checkpoints").rglob("export.json")).read_text())
    assert [entry["name"] for entry in content["artifacts"]] == ["torchscript"]


@pytest.mark.parametrize("at_end", ["true", "false"])
def test_an_unknown_format_is_found_before_the_training(
    at_end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *SMALL, f"--export.at_end={at_end}", "--export.formats=[onxx]"]) == 2
    assert "did you mean onnx" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()
