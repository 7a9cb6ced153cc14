"""metrics.jsonl: one row a logging step and a validation, and after any kill the rows of an unbroken run."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.run.toy_run import BATCH, SEQ, Dies, ToyModule, fit, records
from tinytf.run.callbacks import journal
from tinytf.run.callbacks.journal import JournalCallback, exit_reason, log_to_row, shortest_float32, to_floats
from tinytf.run.journal import NONDETERMINISTIC_METRICS, Journal
from tinytf.utils import machine as process

pytestmark = pytest.mark.filterwarnings("ignore")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key != "time" and key not in NONDETERMINISTIC_METRICS}
        for record in records(folder, "metrics")
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "version_0"


def test_one_row_per_logging_step_and_one_per_validation(folder: Path) -> None:
    fit(folder, [JournalCallback({}, folder)])
    written = rows(folder)
    assert [row["step"] for row in written if "train/loss" in row] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in written if "val/loss" in row] == [4, 8, 12]
    assert not any("train/loss" in row and "val/loss" in row for row in written)
    assert len(written) == 9


def test_with_accumulation_the_step_is_the_optimizers(folder: Path) -> None:
    writer = JournalCallback({}, folder)
    fit(folder, [writer], accumulate=3)
    assert [row["step"] for row in rows(folder) if "train/loss" in row] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows(folder) if "val/loss" in row] == [4, 8, 12]
    assert writer.tokens == 12 * 3 * BATCH * SEQ


def test_a_value_that_was_not_logged_at_a_step_is_not_repeated(folder: Path) -> None:
    fit(folder, [JournalCallback({}, folder)], module=ToyModule(dropped=frozenset({4, 6, 10})))
    assert [row["step"] for row in rows(folder) if "train/sometimes" in row] == [2, 8, 12]


class Notes(Callback):
    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step in (2, 3, 8):
            log_to_row(trainer, {"train/noted": float(trainer.global_step), "train/tensor": torch.tensor(0.5)})


def test_an_added_value_is_in_the_next_row_and_in_no_other(folder: Path) -> None:
    fit(folder, [Notes(), JournalCallback({}, folder)])
    noted = {row["step"]: row["train/noted"] for row in rows(folder) if "train/noted" in row}
    assert noted == {2: 2.0, 4: 3.0, 8: 8.0}


def test_values_are_short_and_exact_in_float32() -> None:
    row = to_floats({"lr": torch.tensor(0.001), "double": torch.tensor(0.1, dtype=torch.float64), "n": torch.tensor(3)})
    assert row == {"lr": 0.001, "double": 0.1, "n": 3.0}
    assert torch.tensor(row["lr"]).item() == torch.tensor(0.001).item()
    assert math.isnan(to_floats({"x": torch.tensor(math.nan)})["x"])


def test_a_number_on_a_gpu_is_the_number() -> None:
    class OnGPU(torch.Tensor):
        """Refuses NumPy as a tensor on CUDA does."""

        def numpy(self, *_: Any, **__: Any) -> Any:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    # ModelCheckpoint's best_model_score is one.
    assert shortest_float32(torch.tensor(0.001).as_subclass(OnGPU)) == 0.001


@pytest.mark.parametrize("kills", [(7,), (3, 9), (6, 7, 11)])
def test_rows_after_kills_are_those_of_an_unbroken_run(folder: Path, tmp_path: Path, kills: tuple[int, ...]) -> None:
    fit(tmp_path / "whole", [JournalCallback({}, tmp_path / "whole")], val_every=3, save_every=5)
    resume = None
    for kill in kills:
        with pytest.raises(RuntimeError, match="killed"):
            fit(
                folder, [JournalCallback({}, folder)], val_every=3, save_every=5, resume=resume,
                dies=Dies(kill, RuntimeError("killed")),
            )  # fmt: skip
        saved = [step for step in (5, 10) if (folder / f"{step}.ckpt").exists()]
        resume = folder / f"{saved[-1]}.ckpt" if saved else None
    fit(folder, [JournalCallback({}, folder)], val_every=3, save_every=5, resume=resume)
    assert rows(folder) == rows(tmp_path / "whole")
    assert len(records(folder, "start")) == len(kills) + 1
    assert [record["reason"] for record in records(folder, "end")] == ["error"] * len(kills) + ["finished"]
    assert records(folder, "end")[-1]["tokens"] == 12 * BATCH * SEQ


def test_a_warning_of_another_thread_does_not_come_after_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_midst, public = threading.Event(), journal.public
    warns = threading.Thread(target=logging.getLogger("tinytf.test").warning, args=("late",))

    def slow(value: Any) -> Any:
        if threading.current_thread() is warns:
            in_the_midst.set()
            time.sleep(0.5)
        return public(value)

    class Warns(Callback):
        def on_train_end(self, *_: Any) -> None:
            warns.start()
            assert in_the_midst.wait(5)

    monkeypatch.setattr(journal, "public", slow)
    fit(folder, [JournalCallback({}, folder), Warns()])
    warns.join()
    assert [record["event"] for record in records(folder)][-2:] == ["warning", "end"]


class DiesAfterValidation(Callback):
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise RuntimeError("killed")


def test_the_validation_of_the_checkpoints_own_step_is_dropped_if_it_was_still_to_come(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fit(folder, [JournalCallback({}, folder), DiesAfterValidation()], val_every=5, save_every=5)
    assert [row["step"] for row in rows(folder)] == [2, 4, 5]
    writer = JournalCallback({}, folder)
    writer.load_state_dict(torch.load(folder / "5.ckpt", weights_only=True)["callbacks"]["JournalCallback"])
    writer._step = 5
    Journal(folder / "metrics.jsonl").rewind(writer._survives)
    assert [row["step"] for row in rows(folder)] == [2, 4]


def test_the_row_of_a_saved_step_is_on_disk_before_the_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[int]] = {}
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor))[1])

    class Spy(JournalCallback):
        def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            before = len(synced)
            super().on_save_checkpoint(trainer, pl_module, checkpoint)
            assert len(synced) > before
            seen[str(trainer.global_step)] = [row["step"] for row in rows(folder) if "train/loss" in row]

    fit(folder, [Spy({}, folder)], save_every=6, best=False)
    assert seen == {"6": [2, 4, 6], "12": [2, 4, 6, 8, 10, 12]}


def test_a_torn_line_is_removed_and_reported(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fit(folder, [JournalCallback({}, folder)], dies=Dies(7, RuntimeError("killed")))
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "metrics", "step": 6, "train/lo')
    fit(folder, [JournalCallback({}, folder)], resume=folder / "5.ckpt")
    assert "1 lines were no records" in records(folder, "warning")[0]["message"]
    assert [row["step"] for row in rows(folder) if "train/loss" in row] == [2, 4, 6, 8, 10, 12]


def test_the_start_carries_what_it_is_given_and_where_it_resumed(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fit(folder, [JournalCallback({"provenance": {"python": "3"}}, folder)], dies=Dies(7, RuntimeError("killed")))
    fit(folder, [JournalCallback({"provenance": {"python": "4"}}, folder)], resume=folder / "5.ckpt")
    first, second = records(folder, "start")
    assert (first["step"], first["resumed_from_step"], first["provenance"]) == (0, None, {"python": "3"})
    assert (second["step"], second["resumed_from_step"]) == (5, 5)
    assert process.is_alive(second["process"]) is True
    assert process.is_alive(second["process"] | {"started": 1}) is False
    assert process.is_alive({key: second["process"][key] for key in ("pid", "machine")}) is True
    for pid in (10**30, "1", None, [1]):  # Of a journal that somebody else wrote.
        assert process.is_alive(second["process"] | {"pid": pid}) is None


def test_an_error_is_written_with_its_traceback(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(folder, [JournalCallback({}, folder)], dies=Dies(3, ZeroDivisionError("by nothing")))
    (error,) = records(folder, "error")
    assert error["step"] == 3
    assert "ZeroDivisionError: by nothing" in error["traceback"]
    assert "on_train_batch_end" in error["traceback"]
    (end,) = records(folder, "end")
    assert (end["reason"], end["detail"]) == ("error", "ZeroDivisionError: by nothing")


def test_a_stop_by_a_signal_is_no_error(folder: Path) -> None:
    with pytest.raises(SystemExit):
        fit(folder, [JournalCallback({}, folder)], dies=Dies(3, SystemExit(128 + 15)))
    (end,) = records(folder, "end")
    assert (end["reason"], end["detail"]) == ("stopped", "SIGTERM")
    assert not records(folder, "error")
    assert exit_reason(KeyboardInterrupt()) == ("stopped", "SIGINT")
    assert [exit_reason(SystemExit(code))[0] for code in (143, 255, 128, 1, "why", None)] == ["stopped"] + ["error"] * 5


def test_the_end_names_the_best_checkpoint_and_the_totals(folder: Path) -> None:
    fit(folder, [JournalCallback({}, folder)])
    last = records(folder)[-1]
    assert (last["event"], last["reason"], last["step"]) == ("end", "finished", 12)
    assert (folder / last["best_checkpoint"]).exists()
    assert last["best_score"] == min(row["val/loss"] for row in rows(folder) if "val/loss" in row)
    assert last["tokens"] == 12 * BATCH * SEQ


class Warns(Callback):
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        warnings.warn("early", stacklevel=1)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 3:
            warnings.warn("the weather", stacklevel=1)
            logging.getLogger("tinytf.data").warning("cache of %s is stale", "x")
            logging.getLogger("someone.else").warning("not ours")


def test_warnings_and_log_records_are_events_and_are_still_shown(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would speak in their place.
    warnings.simplefilter("always")
    fit(folder, [JournalCallback({}, folder), Warns()])
    events = records(folder, "warning")
    texts = [event["message"] for event in events]
    assert any("early" in text for text in texts)
    assert any("the weather" in text and "test_journal_callback.py" in text for text in texts)
    ours = next(event for event in events if event["message"] == "cache of x is stale")
    assert (ours["step"], ours["level"], ours["logger"]) == (3, "WARNING", "tinytf.data")
    assert not any("not ours" in text for text in texts)
    shown = capfd.readouterr().err
    assert shown.count("the weather") >= 1
    assert shown.count("cache of x is stale") == 1
    assert not any(isinstance(handler, logging.Handler) and handler.__class__.__name__ == "WarningsHandler"
                   for handler in logging.getLogger("tinytf").handlers)  # fmt: skip


def test_events_of_others_carry_the_step(folder: Path) -> None:
    writer = JournalCallback({}, folder)

    class Speaks(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 5:
                writer.write("sample", text="To be")
                path = folder / "x.ckpt"
                path.write_bytes(b"1234")
                writer.checkpoint_saved(path, 5, 0.25)

    fit(folder, [writer, Speaks()])
    (sample,) = records(folder, "sample")
    assert (sample["step"], sample["text"]) == (5, "To be")
    (saved,) = records(folder, "checkpoint")
    assert (saved["path"], saved["bytes"], saved["seconds"]) == ("x.ckpt", 4, 0.25)


def test_training_time_adds_up_over_attempts(folder: Path) -> None:
    writer = JournalCallback({}, folder)
    writer.load_state_dict({"validated": 0, "rows": 0, "tokens": 5, "seconds": 100.0})
    writer._began = time.monotonic()
    assert 100.0 <= writer.state_dict()["seconds"] < 101.0
