"""The list of callbacks: its order, and that the overlays in configs/ are what it is made from."""

from __future__ import annotations

from pathlib import Path

import jsonargparse
import pytest
import yaml
from lightning.pytorch.loggers import WandbLogger

from tinytf.run.callbacks.build import build_callbacks
from tinytf.run.callbacks.journal import MetricsFile
from tinytf.run.tracking_settings import ProfileSettings, SampleSettings, TrackingSettings

CONFIGS = Path(__file__).parents[2] / "configs"


def names(folder: Path, settings: TrackingSettings) -> list[str]:
    metrics = MetricsFile(folder, {})
    return [type(callback).__name__ for callback in build_callbacks(settings, metrics, folder, {}, {})]


def test_what_measures_stands_before_the_writer_and_what_needs_its_rows_after(tmp_path: Path) -> None:
    everything = TrackingSettings(layer_norms_every_n_steps=10, profile=ProfileSettings())
    assert names(tmp_path, everything) == [
        "Profile", "Throughput", "LayerNorms", "LossHealth", "MetricsFile", "Dashboards", "Samples",
    ]  # fmt: skip


def test_what_is_switched_off_is_not_there(tmp_path: Path) -> None:
    nothing = TrackingSettings(samples=SampleSettings(0), loss_smoothing=0.0, loss_spike_factor=0.0)
    assert names(tmp_path, nothing) == ["Throughput", "MetricsFile", "Dashboards"]


@pytest.mark.parametrize("overlay", ["loggers/wandb.yaml", "loggers/mlflow.yaml", "profile.yaml"])
def test_an_overlay_turns_on_one_thing_and_leaves_the_rest(overlay: str) -> None:
    content = yaml.safe_load((CONFIGS / overlay).read_text())
    assert list(content) == ["tracking"]
    (key,) = content["tracking"]
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrackingSettings, "tracking")
    found, plain = (parser.parse_object(given).as_dict()["tracking"] for given in (content, {}))
    assert found.pop(key)
    assert not plain.pop(key)
    assert found == plain


def test_lightnings_private_name_that_is_used_still_exists() -> None:
    pytest.importorskip("wandb")
    assert "anonymous" in WandbLogger(offline=True)._wandb_init
