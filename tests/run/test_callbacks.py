"""Callbacks in a Trainer of anybody's, and the overlays in configs/ that turn them on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger

from tests.run.toy_run import ToyModule, fit
from tinytf.errors import UserError
from tinytf.run.callbacks import run_dir_of
from tinytf.run.callbacks.checkpoints import BestCheckpoints, PeriodicCheckpoint
from tinytf.run.callbacks.exact_resume import ExactResume
from tinytf.run.callbacks.loss import LossMonitor
from tinytf.run.callbacks.norms import LayerwiseNorms
from tinytf.run.callbacks.profiler import Profiler
from tinytf.run.callbacks.progress import StepProgress
from tinytf.run.callbacks.samples import Samples
from tinytf.run.callbacks.signals import GracefulStop
from tinytf.run.callbacks.throughput import Throughput


def test_lightnings_private_name_that_is_used_still_exists() -> None:
    pytest.importorskip("wandb")
    assert "anonymous" in WandbLogger(offline=True)._wandb_init


def test_the_optional_callbacks_work_in_a_trainer_without_a_journal(tmp_path: Path) -> None:
    callbacks = [
        Profiler(start_step=1, steps=1), Throughput(), LayerwiseNorms(2), LossMonitor(), Samples(1, max_new_tokens=2),
        StepProgress(), PeriodicCheckpoint(6), ExactResume(),
    ]  # fmt: skip
    fit(tmp_path, callbacks, steps=6, progress=True)
    written = {path.name for path in tmp_path.iterdir()}
    assert {"profile", "step-0000006.ckpt", "last.ckpt"} <= written
    assert "metrics.jsonl" not in written


def test_a_callback_writes_into_the_open_run_else_where_the_trainer_does(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[PeriodicCheckpoint()])
    assert run_dir_of(trainer) == tmp_path
    trainer.callbacks.append(BestCheckpoints(run_dir=tmp_path / "run"))  # type: ignore[attr-defined]
    assert run_dir_of(trainer) == tmp_path / "run"


def test_samples_without_a_text_to_begin_with_ask_for_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.samples: the datamodule has no tokenizer"):
        Samples().setup(Trainer(accelerator="cpu", logger=False), ToyModule(), "fit")


class HangsUp(Callback):
    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGHUP)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_stops_a_run_and_one_under_nohup_continues(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for ignored in (False, True):
            handler = signal.SIG_IGN if ignored else signal.SIG_DFL
            signal.signal(signal.SIGHUP, handler)
            folder, periodic = tmp_path / str(ignored), PeriodicCheckpoint(0)
            callbacks = [HangsUp(), GracefulStop(periodic), periodic]
            if ignored:
                fit(folder, callbacks, steps=6, best=False)
            else:
                with pytest.raises(SystemExit, match=str(128 + signal.SIGHUP)):
                    fit(folder, callbacks, steps=6, best=False)
            assert (folder / "last.ckpt").readlink() == Path(f"step-000000{6 if ignored else 3}.ckpt")
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)
