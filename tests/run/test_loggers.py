"""The trackers: the same names and numbers in each, no step twice after a resume, none that is missing."""

from __future__ import annotations

import importlib.util
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from tests.run.toy_run import Dies, fit, records
from tinytf.errors import UserError
from tinytf.run.callbacks.journal import JournalCallback
from tinytf.run.callbacks.metadata import LogRunMetadata
from tinytf.run.config import MlflowConfig, WandbConfig
from tinytf.run.journal import run_id_of
from tinytf.run.loggers import build_loggers
from tinytf.run.loggers.base import as_code_block, hyperparameters
from tinytf.run.loggers.tensorboard import LAYOUT
from tinytf.utils.text import public

CONFIG = {"model": {"d_model": 16, "dropout": 0.0, "d_ff": None}, "name": "toy", "trainer": {"devices": [0, 1]}}


@pytest.mark.parametrize("uri", ["./runs of mlflow", "mlruns", None])
def test_a_folder_is_a_tracking_server(uri: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(folder.parents[2])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it itself.
    killed_and_resumed(folder, {"tensorboard": False, "mlflow": MlflowConfig(uri=uri)})
    there = Path(uri) if uri else folder.parents[1] / "mlruns"
    assert list(there.rglob("metrics/train/loss"))


@pytest.mark.parametrize("uri", ["nope://x", "http://user:passsecret@127.0.0.1:9", "http://[::1"])
def test_a_tracking_server_that_cannot_be_asked_is_named(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        UserError, match=r"^tracking\.mlflow\.uri .*; give another, or null for a local folder$"
    ) as caught:
        build_loggers(folder, "id", mlflow=MlflowConfig(uri=uri))
    assert "passsecret" not in public(str(caught.value))


def test_wandb_records_neither_the_git_remote_nor_what_is_printed(folder: Path) -> None:
    pytest.importorskip("wandb")
    (logger,) = build_loggers(folder, "id", tensorboard=False, wandb=WandbConfig(project="p"))
    settings = logger._wandb_init["settings"]  # type: ignore[attr-defined]
    assert (settings.x_disable_meta, settings.disable_git, settings.console) == (True, True, "off")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "toy" / "version_0"


def train(folder: Path, settings: dict[str, Any], resume: int | None = None, dies: Callback | None = None) -> None:
    run_id = run_id_of(folder)
    callbacks = [
        JournalCallback({"run_id": run_id, "provenance": {"python": "3"}}, folder),
        LogRunMetadata(CONFIG, {"python": "3"}),
    ]
    fit(
        folder, callbacks, loggers=build_loggers(folder, run_id, resume, **settings), dies=dies,
        resume=folder / f"{resume}.ckpt" if resume else None, val_every=3, save_every=5,
    )  # fmt: skip


def killed_and_resumed(folder: Path, settings: dict[str, Any]) -> None:
    """A run killed two steps past its checkpoint, and resumed from there."""
    with pytest.raises(RuntimeError, match="killed"):
        train(folder, settings, dies=Dies(7, RuntimeError("killed")))
    train(folder, settings, resume=5)


def journal_series(folder: Path) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for record in records(folder, "metrics"):
        for name, value in record.items():
            if name not in ("event", "time", "step"):
                series.setdefault(name, []).append((record["step"], value))
    return series


def tensorboard_series(folder: Path, name: str) -> list[tuple[int, float]]:
    """As TensorBoard's own server reads it."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(name)]


def test_tensorboard_has_the_journals_numbers_once_after_a_resume(folder: Path) -> None:
    killed_and_resumed(folder, {})
    wanted = journal_series(folder)
    for name, series in wanted.items():
        found = tensorboard_series(folder, name)
        assert [step for step, _ in found] == [step for step, _ in series]
        assert [value for _, value in found] == pytest.approx([value for _, value in series])
    assert [step for step, _ in wanted["train/loss"]] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in wanted["val/loss"]] == [3, 6, 9, 12]
    assert not (folder / "hparams.yaml").exists()
    assert list(folder.glob("events.out.tfevents.*"))


def test_tensorboard_keeps_the_rows_of_the_very_step_it_resumes_from(folder: Path) -> None:
    settings = {}
    with pytest.raises(RuntimeError, match="killed"):
        train(folder, settings, dies=Dies(12, RuntimeError("killed")))
    train(folder, settings, resume=10)
    assert [step for step, _ in tensorboard_series(folder, "train/loss")] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in tensorboard_series(folder, "val/loss")] == [3, 6, 9, 12]


def test_tensorboards_pages(folder: Path) -> None:
    train(folder, {})
    events = EventAccumulator(str(folder)).Reload()
    texts = {tag for tag in events.Tags()["tensors"] if tag.endswith("/text_summary")}
    assert {"config/text_summary", "provenance/text_summary"} <= texts
    assert b"d_model" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]

    from tensorboard.plugins.custom_scalar import layout_pb2, metadata
    from tensorboard.plugins.hparams import plugin_data_pb2

    (layout_event,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(layout_event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert {category.title for category in layout.category} == set(LAYOUT)
    assert {"train/loss$", "val/loss$"} <= set(charts["loss"])

    def session(tag: str) -> Any:
        content = events.SummaryMetadata(tag).plugin_data.content
        return plugin_data_pb2.HParamsPluginData.FromString(content)

    info = session("_hparams_/session_start_info").session_start_info
    assert info.hparams["model.d_model"].number_value == 16
    assert info.hparams["model.d_ff"].string_value == "null"
    experiment = session("_hparams_/experiment").experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["val/loss"]


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of W&B's offline file: LevelDB's log format, blocks of 32 kB with pieces of 7 bytes and data."""
    data = path.read_bytes()
    position, record = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # The whole of a record, or its last piece.
            yield record
            record = b""


def offline_rows(folder: Path) -> tuple[set[str], dict[int, dict[str, Any]]]:
    from wandb.proto import wandb_internal_pb2

    ids: set[str] = set()
    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(path):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = record.history.item
                row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
                rows.setdefault(record.history.step.num, {}).update(row)
    return ids, rows


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="the extra wandb is not installed")
def test_wandb_offline_is_one_run_with_the_journals_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    settings = {"tensorboard": False, "wandb": WandbConfig()}
    with pytest.raises(RuntimeError, match="killed"):
        train(folder, settings, dies=Dies(7, RuntimeError("killed")))
    wandb.finish()
    train(folder, settings, resume=5)
    wandb.finish()
    last = max(step for series in journal_series(folder).values() for step, _ in series)
    for _ in range(100):  # On a busy machine, wandb's own process may still be writing when finish returns.
        ids, rows = offline_rows(folder)
        if last in rows:
            break
        time.sleep(0.1)
    assert len(ids) == 1
    for name, series in journal_series(folder).items():
        assert [(step, row[name]) for step, row in sorted(rows.items()) if name in row] == series


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="the extra mlflow is not installed")
def test_mlflow_is_one_run_with_the_journals_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    killed_and_resumed(folder, {"tensorboard": False, "mlflow": MlflowConfig()})
    from mlflow.tracking import MlflowClient

    client = MlflowClient((folder.parent.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("tinytf")
    (run,) = client.search_runs([experiment.experiment_id])
    for name, series in journal_series(folder).items():
        values = [(value.step, value.value) for value in client.get_metric_history(run.info.run_id, name)]
        assert values == series
    assert run.data.params["model.d_model"] == "16"
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} >= {"best", "config", "provenance"}


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_names_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = {"wandb": WandbConfig() if package == "wandb" else None, "mlflow": MlflowConfig()}
    with pytest.raises(UserError, match=rf"tinytf\[{package}\]"):
        build_loggers(folder, "id", **settings)


def test_other_lightning_loggers_get_the_rows_too(folder: Path) -> None:
    from lightning.pytorch.loggers.logger import DummyLogger

    class Theirs(DummyLogger):
        rows: list[int | None] = []  # noqa: RUF012

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.rows.append(step)

    fit(folder, [JournalCallback({}, folder), LogRunMetadata(CONFIG, {})], loggers=[Theirs()], val_every=5)
    assert Theirs.rows == [2, 4, 5, 6, 8, 10, 10, 12]


def test_the_best_checkpoint_is_offered_when_training_ends(folder: Path) -> None:
    given: list[Path] = []

    class Watches(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            trainer.loggers[0].log_best = given.append  # type: ignore[attr-defined]

    fit(folder, [Watches(), LogRunMetadata(CONFIG, {})], loggers=build_loggers(folder, "id"))
    (path,) = given
    assert path.exists()
    assert path.name.startswith("best-")


def test_the_run_id_is_that_of_the_journal(folder: Path) -> None:
    assert run_id_of(folder) != run_id_of(folder)
    train(folder, {"tensorboard": False})
    assert run_id_of(folder) == records(folder, "start")[0]["run_id"]


def test_a_config_flat_and_text_as_code_block() -> None:
    assert hyperparameters(CONFIG) == {
        "model.d_model": 16, "model.dropout": 0.0, "model.d_ff": "null", "name": "toy", "trainer.devices": "[0, 1]",
    }  # fmt: skip
    assert as_code_block("a```b") == "````\na```b\n````"
