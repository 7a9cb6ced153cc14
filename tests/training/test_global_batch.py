"""data.global_batch_size: the same steps on any number of devices, or a refusal by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.stress.campaign import arguments, end_of, prepare
from tinytf.cli.main import main
from tinytf.errors import UserError
from tinytf.training.trainer import accumulation


@pytest.mark.parametrize(("devices", "steps"), [(1, 12), (2, 6), (3, 4), (4, 3), (12, 1)])
def test_accumulation_makes_up_for_devices(devices: int, steps: int) -> None:
    assert accumulation(96, 8, devices, None) == steps
    assert accumulation(96, 8, devices, steps) == steps


def test_what_does_not_divide_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"data\.global_batch_size 96 .*data\.batch_size 8 on 5 devices"):
        accumulation(96, 8, 5, None)
    with pytest.raises(UserError, match=r"data\.global_batch_size 4 .*data\.batch_size 8 on 1 device\)"):
        accumulation(4, 8, 1, None)


def test_a_contradiction_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"trainer\.accumulate_grad_batches 5 contradicts data\.global_batch_size 96"):
        accumulation(96, 8, 2, 5)


def fit(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> int:
    folder.mkdir(exist_ok=True)
    prepare(folder)
    monkeypatch.chdir(folder)
    plain = {"trainer.precision": "32-true", "model.dropout": 0.0, "model.schedule": "Constant"}
    return main(arguments({**plain, **{key.replace("__", "."): value for key, value in settings.items()}}))


def test_a_run_that_goes_on_with_other_micro_batches_makes_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    assert fit(whole, monkeypatch, data__batch_size=4, data__global_batch_size=8) == 0
    # Five steps of two micro-batches: ten, which steps of eight micro-batches would not fall in with.
    assert fit(changed, monkeypatch, data__batch_size=4, data__global_batch_size=8, trainer__max_steps=5) == 0
    assert fit(changed, monkeypatch, data__batch_size=1, data__global_batch_size=8, trainer__max_steps=12) == 0
    reference, end = end_of(whole), end_of(changed)
    for name in ("train/loss", "val/loss"):
        mine, theirs = ({row["step"]: row[name] for row in e.rows if name in row} for e in (end, reference))
        # The shorter run's last step is validated too.
        assert mine.keys() - theirs.keys() == ({5} if name == "val/loss" else set())
        assert {step: mine.get(step) for step in theirs} == pytest.approx(theirs, abs=5e-4)
    positions = [
        torch.load(folder / "checkpoints/killed/version_0/last.ckpt", weights_only=True)["TextDataModule"]
        for folder in (whole, changed)
    ]
    assert [position["samples"] for position in positions] == [12 * 8, 12 * 8]
    assert [position["batches"] for position in positions] == [12 * 2, 12 * 8]


def test_the_command_refuses_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, monkeypatch, data__batch_size=4, data__global_batch_size=6) == 2
    assert "data.global_batch_size 6 is no multiple of the 4 windows" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()
