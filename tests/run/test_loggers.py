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
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from tests.run.toy_run import Dies, fit, records
from tinytf.errors import UserError
from tinytf.run.callbacks.journal import JournalCallback
from tinytf.run.config import MlflowConfig, WandbConfig
from tinytf.run.journal import run_id_of
from tinytf.run.loggers import build_loggers
from tinytf.run.loggers.base import as_code_block, hyperparameters
from tinytf.run.loggers.tensorboard import LAYOUT, TensorBoard

CONFIG = {"model": {"d_model": 16, "dropout": 0.0, "d_ff": None}, "name": "toy", "trainer": {"devices": [0, 1]}}
COMMIT = "1234567890123456789012345678901234567890"


@pytest.mark.parametrize("uri", ["./runs of mlflow", "mlruns", None])
def test_a_folder_is_a_tracking_server(uri: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(folder.parents[2])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it itself.
    killed_and_resumed(folder, {"tensorboard": False, "mlflow": MlflowConfig(uri=uri)})
    there = Path(uri) if uri else folder.parents[1] / "mlruns"
    assert list(there.rglob("metrics/train/loss"))


@pytest.mark.parametrize("uri", ["nope://x", "http://[::1"])
def test_an_address_that_is_none_is_refused(uri: str, folder: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(UserError, match=r"^tracking\.mlflow\.uri .*; give another, or null for a local folder$"):
        build_loggers(folder, "id", mlflow=MlflowConfig(uri=uri))


def test_wandb_records_neither_the_git_remote_nor_what_is_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (logger,) = build_loggers(folder, "id", tensorboard=False, wandb=WandbConfig(project="p"))
    settings = logger._wandb_init["settings"]
    assert (settings.x_disable_meta, settings.disable_git, settings.console) == (True, True, "off")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "toy" / "version_0"


class LogsThemselves(Callback):
    """As several of Lightning's callbacks do at once."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        for name in "xyz":
            for logger in trainer.loggers:
                logger.log_metrics({name: float(trainer.global_step)}, step=trainer.global_step)


def train(folder: Path, settings: dict[str, Any], resume: int | None = None, dies: Callback | None = None) -> None:
    run_id = run_id_of(folder)
    start = {"run_id": run_id, "config": CONFIG, "provenance": {"git": {"commit": COMMIT}}}
    fit(
        folder, [LogsThemselves(), JournalCallback(start, folder)], dies=dies,
        loggers=build_loggers(folder, run_id, resume, **settings),
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

    (layout_event,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(layout_event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert {category.title for category in layout.category} == set(LAYOUT)
    assert {"train/loss$", "val/loss$"} <= set(charts["loss"])


def hyperparameter_columns(root: Path) -> tuple[list[str], list[str]]:
    """The columns of the HPARAMS tab, as TensorBoard's own server answers them."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.api_pb2 import GetExperimentRequest
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.hparams.get_experiment import Handler

    runs = EventMultiplexer(tensor_size_guidance={"tensors": 0}).AddRunsFromDirectory(str(root))
    provider = MultiplexerDataProvider(runs.Reload(), str(root))
    backend = Context(TBContext(data_provider=provider, logdir=str(root)))
    answer = Handler(RequestContext(), backend, "", GetExperimentRequest()).run()
    return [info.name for info in answer.hparam_infos], [info.name.tag for info in answer.metric_infos]


def test_hparams_opens_on_what_differs_between_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, dropout in enumerate((0.0, 0.1)):
        config = {"checkpoint": {"dir": "a"}, "data": {"batch_size": 1}, "model": {"d_ff": None, "dropout": dropout}}
        monkeypatch.setitem(globals(), "CONFIG", config)
        train(folder.with_name(f"version_{version}"), {})
    names, metrics = hyperparameter_columns(folder.parent)
    assert names == ["model.dropout", "data.batch_size", "model.d_ff"]
    assert metrics[0] == "hp_metric"
    assert {"val/loss", "train/loss"} <= set(metrics)
    assert tensorboard_series(folder, "hp_metric") == tensorboard_series(folder, "val/loss")


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of W&B's offline file: LevelDB's log format, blocks of 32 kB with pieces of 7 bytes and data.

    W&B itself has no reader of it in Python since 0.31.
    """
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


def offline_runs(folder: Path) -> list[tuple[set[str], dict[int, dict[str, Any]]]]:
    """Ids and rows of each of W&B's own files, the oldest first, the records parsed by W&B's own classes."""
    from wandb.proto import wandb_internal_pb2

    runs = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        ids: set[str] = set()
        rows: dict[int, dict[str, Any]] = {}
        for data in wandb_records(path):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = record.history.item
                row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
                assert record.history.step.num not in rows
                rows[record.history.step.num] = row
        runs.append((ids, rows))
    return runs


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
        runs = offline_runs(folder)
        if last in runs[-1][1]:
            break
        time.sleep(0.1)
    assert [ids for ids, _ in runs] == [{run_id_of(folder)}] * 2
    rows = runs[-1][1]  # That of the resumed run has the whole run: it alone is enough to sync.
    for name, series in journal_series(folder).items():
        assert [(step, row[name]) for step, row in sorted(rows.items()) if name in row] == series
    assert sorted(step for step, row in rows.items() if "train/loss" in row or "val/loss" in row) == sorted(
        {record["step"] for record in records(folder, "metrics")}
    )


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
    assert run.data.tags["mlflow.source.git.commit"] == COMMIT
    assert run.info.status == "FINISHED"
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} >= {"best", "config", "provenance"}


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_names_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = {"wandb": WandbConfig() if package == "wandb" else None, "mlflow": MlflowConfig()}
    with pytest.raises(UserError, match=rf"tinytf\[{package}\]"):
        build_loggers(folder, "id", **settings)


def test_other_lightning_loggers_get_the_rows_too(folder: Path) -> None:
    class Theirs(DummyLogger):
        def __init__(self) -> None:
            self.rows: list[int | None] = []

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.rows.append(step)

    plain, followed = Theirs(), Theirs()
    loggers = [plain, *build_loggers(folder, "id", tensorboard=False, others=[followed])]
    fit(folder, [JournalCallback({}, folder)], loggers=loggers, val_every=5)
    assert plain.rows == followed.rows == [2, 4, 5, 6, 8, 10, 10, 12]


def test_the_best_checkpoint_is_given_to_trackers_when_training_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path] = []
    monkeypatch.setattr(TensorBoard, "log_best", lambda self, path: given.append(path))
    train(folder, {})
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
