"""Health: the smoothed loss, one warning a spike, each layer's norms; all of it the same after a resume."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.run.toy_run import Dies, ToyModule, fit, records
from tinytf.errors import UserError
from tinytf.run.callbacks.journal import JournalCallback
from tinytf.run.callbacks.loss import ENOUGH, LossMonitor
from tinytf.run.callbacks.norms import LayerwiseNorms
from tinytf.run.callbacks.profiler import Profiler
from tinytf.run.callbacks.samples import Samples


def column(folder: Path, name: str) -> list[float]:
    return [row[name] for row in records(folder, "metrics") if name in row]


def test_the_smoothed_loss_is_a_running_average_of_the_logged_one(tmp_path: Path) -> None:
    fit(tmp_path, [LossMonitor(0.5, 0.0), JournalCallback({}, tmp_path)])
    losses, smooth = column(tmp_path, "train/loss"), column(tmp_path, "train/loss_smooth")
    wanted = losses[0]
    for loss, value in zip(losses, smooth, strict=True):
        wanted = 0.5 * wanted + 0.5 * loss
        assert value == pytest.approx(wanted, rel=1e-6)


def test_it_continues_smoothing_after_a_resume(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit(whole, [LossMonitor(0.9, 2.0), JournalCallback({}, whole)], val_every=3)
    with pytest.raises(RuntimeError):
        fit(
            broken,
            [LossMonitor(0.9, 2.0), JournalCallback({}, broken)],
            val_every=3,
            dies=Dies(8, RuntimeError("killed")),
        )
    fit(broken, [LossMonitor(0.9, 2.0), JournalCallback({}, broken)], val_every=3, resume=broken / "5.ckpt")
    assert column(broken, "train/loss_smooth") == column(whole, "train/loss_smooth")


def test_one_warning_per_spike(caplog: pytest.LogCaptureFixture) -> None:
    health = LossMonitor(0.0, 2.0)
    with caplog.at_level(logging.WARNING, logger="tinytf"):
        for loss in [9.0] + [3.0] * ENOUGH:
            health._watch(loss)
        assert not caplog.records
        for loss in [7.0, 8.0, math.nan, 3.0, 3.0, 6.5]:
            health._watch(loss)
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "train/loss 7.0000 is 2.3 times its median 3.0000",
        "train/loss 6.5000 is 2.2 times its median 3.0000",
    ]


def test_a_spike_is_known_over_a_resume(caplog: pytest.LogCaptureFixture) -> None:
    before, after = LossMonitor(0.0, 2.0), LossMonitor(0.0, 2.0)
    for loss in [3.0] * ENOUGH + [7.0]:
        before._watch(loss)
    after.load_state_dict(before.state_dict())
    caplog.clear()
    after._watch(8.0)
    assert not caplog.records


class Jumps(ToyModule):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_step == 23:
            self.losses[-1] = self.losses[-1] * 10
        return loss


def test_a_spike_in_a_run_is_a_warning_event(tmp_path: Path) -> None:
    fit(tmp_path, [LossMonitor(0.0, 2.0), JournalCallback({}, tmp_path)], steps=28, module=Jumps(), val_every=100)
    spikes = [record for record in records(tmp_path, "warning") if record["logger"] == "tinytf.run.callbacks.loss"]
    assert [record["step"] for record in spikes] == [24]


class Remembers(Callback):
    """Norms of the toy's first layer at step 4, by hand."""

    def __init__(self) -> None:
        self.norms: dict[str, float] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step == 3:
            self.before = [p.detach().clone() for p in pl_module.model.layers[0].parameters()]  # type: ignore[index, union-attr]
            grads = [p.grad for p in pl_module.model.layers[0].parameters()]  # type: ignore[index, union-attr]
            self.norms["grad"] = torch.cat([grad.flatten() for grad in grads if grad is not None]).norm().item()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 4:
            now = list(pl_module.model.layers[0].parameters())  # type: ignore[index, union-attr]
            self.norms["weight"] = torch.cat([p.detach().flatten() for p in now]).norm().item()
            changes = [(p.detach() - b).flatten() for p, b in zip(now, self.before, strict=True)]
            self.norms["update"] = torch.cat(changes).norm().item()


def test_layer_norms_are_those_computed_by_hand_on_their_own_cadence(tmp_path: Path) -> None:
    remembers = Remembers()
    fit(tmp_path, [LayerwiseNorms(4), JournalCallback({}, tmp_path), remembers])
    rows = {row["step"]: row for row in records(tmp_path, "metrics") if "layers/0/grad_norm" in row}
    assert list(rows) == [4, 8, 12]
    for kind, value in remembers.norms.items():
        assert rows[4][f"layers/0/{kind}_norm"] == pytest.approx(value, rel=1e-5)
    names = {name for name in rows[4] if name.endswith("_norm")}
    assert len(names) == 9  # Two layers and the embedding, three norms each.


def test_layer_norms_change_no_weight(tmp_path: Path) -> None:
    plain, watched = ToyModule(), ToyModule()
    fit(tmp_path / "a", [], module=plain)
    fit(tmp_path / "b", [LayerwiseNorms(2), LossMonitor(0.9, 2.0), JournalCallback({}, tmp_path / "b")], module=watched)
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_cadence_between_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.norms\.every_n_steps is 3, but must be a multiple"):
        fit(tmp_path, [LayerwiseNorms(3)])


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        (Samples, {"every_n_validations": -1}, "samples.every_n_validations"),
        (Samples, {"max_new_tokens": 0}, "samples.max_new_tokens"),
        (Samples, {"temperature": -0.1}, "samples.temperature"),
        (LossMonitor, {"smoothing": 1.0}, "loss.smoothing"),
        (LossMonitor, {"spike_factor": 0.5}, "loss.spike_factor"),
        (LayerwiseNorms, {"every_n_steps": -1}, "norms.every_n_steps"),
        (Profiler, {"start_step": 0}, "profile.start_step"),
    ],
)
def test_settings_without_meaning_are_refused_by_name(kind: type[Callback], settings: Any, name: str) -> None:
    with pytest.raises(UserError, match=f"tracking.{name} is"):
        kind(**settings)
    kind()
