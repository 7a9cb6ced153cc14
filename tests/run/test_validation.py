"""When a run validates besides its interval, and the line about validations that take too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from tests.run.toy_run import ToyData, ToyModule, fit
from tinytf.run.callbacks import validation
from tinytf.run.callbacks.validation import Validation


class Seen(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.intervals: set[Any] = set()

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps.append(trainer.global_step)
        self.intervals.add(trainer.val_check_batch)


@pytest.mark.parametrize(
    ("every", "accumulate", "steps"), [(100, 1, [6]), (4, 1, [4, 6]), (3, 1, [3, 6]), (4, 2, [4, 6])]
)
def test_the_last_step_is_validated_once_whatever_the_interval(
    every: int, accumulate: int, steps: list[int], tmp_path: Path
) -> None:
    seen = Seen()
    fit(tmp_path, [Validation(), seen], steps=6, val_every=every, accumulate=accumulate)
    assert seen.steps == steps
    assert seen.intervals == {every * accumulate}  # A checkpoint that is saved now says by it what is due.


def test_a_plain_trainer_that_validates_once_an_epoch(tmp_path: Path) -> None:
    seen = Seen()
    trainer = Trainer(
        max_steps=4, accumulate_grad_batches=2, callbacks=[Validation(), seen], accelerator="cpu", logger=False,
        default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(ToyModule(), datamodule=ToyData())
    assert seen.steps == [4]


class Clock(Callback):
    """Each step takes a second, the first one 100, as a compiler does; each batch of a validation takes some."""

    def __init__(self, batch_seconds: float) -> None:
        self.now, self.batch_seconds = 0.0, batch_seconds

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.now += 100.0 if trainer.global_step == 0 else 1.0

    def on_validation_batch_end(self, *_: Any) -> None:
        self.now += self.batch_seconds


@pytest.mark.parametrize(
    ("batch_seconds", "steps", "says"),
    [
        # 8 s of training between two validations of 3 x 40 s: 480 steps of a second each would make them a fifth.
        (40.0, 1000, "trainer.val_check_interval 480, or with trainer.limit_val_batches 1 of 3"),
        (40.0, 8, ""),  # None is to come.
        (2.0, 1000, ""),
    ],
)
def test_a_validation_longer_than_the_training_between_two_is_said_once(
    batch_seconds: float,
    steps: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Ends(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 17

    clock = Clock(batch_seconds)
    monkeypatch.setattr(validation.time, "monotonic", lambda: clock.now)
    fit(tmp_path, [clock, Ends(), Validation()], steps=steps, val_every=8)
    warnings = [record.message for record in caplog.records if record.message.startswith("validation takes")]
    assert len(warnings) == bool(says)
    assert not says or says in warnings[0]
    assert not says or "validation takes 120.0 s, and the 8 steps between two take 8.0 s" in warnings[0]
