"""A loss that is not finite stops the run or skips the step; memory that runs out is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stress.campaign import End, arguments, end_of, prepare
from tinytf.cli.main import main
from tinytf.training import lightning_module as module
from tinytf.training.lightning_module import LanguageModel

STEPS = {"trainer.max_steps": 8, "trainer.accumulate_grad_batches": 2}
FAULT = 9
"""The second micro-batch of the fifth step."""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


def fault(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = module.mean_loss, []

    def broken(network: Any, tokens: Any, targets: Any) -> Any:
        seen.append(tokens)
        return whole(network, tokens, targets) * (float("nan") if len(seen) == FAULT + 1 else 1.0)

    monkeypatch.setattr(module, "mean_loss", broken)


def fit(folder: Path, settings: dict[str, Any], code: int = 0) -> None:
    assert main(arguments(settings)) == code


def test_it_stops_before_the_step_and_keeps_the_batch(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as broken:
        fault(broken)
        fit(workplace, STEPS, code=1)
    line = capfd.readouterr().err.splitlines()[-1]
    run = Path("checkpoints/killed/version_0").absolute()
    assert line.startswith(f"tinytf: error: step 5, batch {FAULT}: the loss is "), line
    assert "nan" in line
    (path,) = run.glob("nonfinite-*")
    assert path.name == "nonfinite-step-0000005.pt"
    assert path.name in line
    kept = torch.load(path, weights_only=True)
    assert kept["step"] == 5
    assert len(kept["batches"]) == len(kept["losses"]) == 2
    assert torch.isfinite(kept["losses"][0])
    assert torch.isnan(kept["losses"][1])
    tokens, targets = kept["batches"][1]
    assert tokens.shape == targets.shape == (4, 16)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    # The last good checkpoint is kept, and going on from it is the run that was never broken.
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 4
    fit(workplace, STEPS)
    (workplace / "unbroken").mkdir()
    monkeypatch.chdir(workplace / "unbroken")
    prepare(workplace / "unbroken")
    fit(workplace, STEPS)
    reference, end = end_of(workplace / "unbroken"), end_of(workplace)
    assert End.differs(reference, end) == []


@pytest.mark.parametrize("optimizer", ["tinytf.training.MuonAdamW", "torch.optim.AdamW"])
def test_a_skipped_step_changes_no_weight_and_is_counted_through_a_resume(
    optimizer: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {
        **STEPS,
        "model.on_nonfinite": "skip",
        "model.optimizer": optimizer,
        "model.optimizer.lr": 0.01,
        "model.schedule": "Constant",
        "checkpoint.every_n_steps": 1,
        "checkpoint.keep_last": 0,
    }
    with monkeypatch.context() as broken:
        fault(broken)
        fit(workplace, settings)
    assert f"step 5, batch {FAULT}" in capfd.readouterr().err
    run = Path("checkpoints/killed/version_0")
    before, after, later = (
        torch.load(run / f"step-{step:07d}.ckpt", weights_only=True)["state_dict"] for step in (4, 5, 6)
    )
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not all(torch.equal(after[key], later[key]) for key in after)
    fit(workplace, {**settings, "trainer.max_steps": 10})
    counted = {row["step"]: row.get("train/skipped_steps") for row in end_of(workplace).rows if "train/loss" in row}
    assert [counted[step] for step in (4, 5, 8, 9, 10)] == [None, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:126] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_names_the_settings_to_lower(
    error: BaseException, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def short(*_: Any) -> None:
        raise error

    monkeypatch.setattr(LanguageModel, "training_step", short)
    fit(workplace, STEPS, code=1)
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("tinytf: error: out of memory")
    for setting in ("data.batch_size", "data.seq_len", "model.d_model"):
        assert setting in line
