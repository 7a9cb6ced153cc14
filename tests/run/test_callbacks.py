"""The overlays in configs/ turn on what they are named after."""

from __future__ import annotations

from pathlib import Path

import jsonargparse
import pytest
import yaml
from lightning.pytorch.loggers import WandbLogger

from tinytf.run.config import TrackingConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("overlay", ["loggers/wandb.yaml", "loggers/mlflow.yaml", "profile.yaml"])
def test_an_overlay_turns_on_one_thing_and_leaves_the_rest(overlay: str) -> None:
    content = yaml.safe_load((CONFIGS / overlay).read_text())
    assert list(content) == ["tracking"]
    (key,) = content["tracking"]
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrackingConfig, "tracking")
    found, plain = (parser.parse_object(given).as_dict()["tracking"] for given in (content, {}))
    assert found.pop(key) != plain.pop(key)
    assert found == plain


def test_lightnings_private_name_that_is_used_still_exists() -> None:
    pytest.importorskip("wandb")
    assert "anonymous" in WandbLogger(offline=True)._wandb_init
