"""Averaged weights are the model in all of a run: validated, sampled, saved, exported; and it is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging

import tinytf
from tests.run.toy_run import ToyModule, fit, records
from tests.stress.campaign import prepare
from tinytf.cli.main import main
from tinytf.errors import UserError
from tinytf.run.callbacks.averaging import AveragedWeights
from tinytf.run.callbacks.journal import JournalCallback
from tinytf.run.callbacks.samples import Samples
from tinytf.training.trainer import Trainer

FEW = ["--trainer.max_steps=8", "--trainer.val_check_interval=4", "--checkpoint.every_n_steps=4"]


def test_what_is_evaluated_sampled_and_saved_is_the_averages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    overlays = ["--config=callbacks/averaging", "--config=callbacks/early_stopping"]
    shown = [
        "--tracking.samples.prompts=['The ']",
        "--tracking.samples.temperature=0",
        "--tracking.samples.max_new_tokens=20",
    ]
    assert main(["fit", "--config=tiny", *overlays, *FEW, *shown]) == 0
    said = capfd.readouterr().err
    assert "EMAWeightAveraging: what is validated, sampled, saved as the model and exported is the averaged" in said
    assert "weights averaged by EMAWeightAveraging" in said
    run = tmp_path / "checkpoints/tiny/version_0"
    (start,) = records(run, "start")
    assert start["averaged_by"] == "EMAWeightAveraging"
    classes = [each["class_path"].rpartition(".")[2] for each in start["config"]["trainer"]["callbacks"]]
    assert classes == ["EMAWeightAveraging", "EarlyStopping"]
    # The checkpoint's model is the averages, its val/loss is theirs, and so is its sample.
    content = torch.load(run / "last.ckpt", weights_only=True)
    assert not torch.equal(
        *(content[key]["model.embed_tokens.weight"] for key in ("state_dict", "current_model_state"))
    )
    rows = {row["step"]: row["val/loss"] for row in records(run, "metrics") if "val/loss" in row}
    assert main(["validate", f"--ckpt_path={run / 'last.ckpt'}", "--trainer.enable_progress_bar=false"]) == 0
    (measured,) = re.findall(r"val/loss *│ *([\d.]+)", capfd.readouterr().out)
    assert float(measured) == pytest.approx(rows[8], rel=1e-5)
    (sample,) = [event for event in records(run, "sample") if event["step"] == 8]
    generated = tinytf.load(run / "last.ckpt", device="cpu").generate("The ", max_new_tokens=20, temperature=0)
    assert sample["text"] in str(generated)
    assert main(["inspect", f"--ckpt_path={run / 'last.ckpt'}"]) == 0
    assert "averaged_by    EMAWeightAveraging" in capfd.readouterr().out


def test_before_the_first_average_the_model_is_the_weights(tmp_path: Path) -> None:
    losses = {}
    for name, callbacks in (
        ("plain", []),
        ("late", [EMAWeightAveraging(update_starting_at_step=10), AveragedWeights()]),
    ):
        fit(tmp_path / name, [JournalCallback({}), *callbacks], steps=8)  # type: ignore[list-item]
        losses[name] = [row["val/loss"] for row in records(tmp_path / name, "metrics") if "val/loss" in row]
    assert losses["plain"] == losses["late"]
    content = torch.load(tmp_path / "late/5.ckpt", weights_only=True)
    for key, value in content["current_model_state"].items():
        assert torch.equal(value, content["state_dict"][key])


def test_samples_leave_the_weights_that_train_in_their_place(tmp_path: Path) -> None:
    ends = []
    for samples in ([], [Samples(max_new_tokens=3)]):
        module = ToyModule()
        callbacks: list[Any] = [JournalCallback({}), WeightAveraging(), *samples, AveragedWeights()]
        fit(tmp_path / str(len(samples)), callbacks, module=module)
        ends.append(module.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


@pytest.mark.parametrize(
    ("callbacks", "says"),
    [
        ([EMAWeightAveraging(), WeightAveraging()], "EMAWeightAveraging and WeightAveraging both make"),
        ([EMAWeightAveraging(update_starting_at_epoch=0)], "use update_starting_at_step"),
        ([EMAWeightAveraging(update_every_n_steps=0)], "update_every_n_steps is 0, but must be at least 1"),
    ],
)
def test_averages_that_would_not_be_those_asked_for_are_refused(callbacks: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Trainer(callbacks=callbacks)
