"""A tracker is never the run: one that fails or hangs warns in a line, and gets its rows later, each once."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.summary.writer import event_file_writer
from tensorboard.summary.writer.record_writer import RecordWriter

from tests.end_to_end.processes import Fit
from tests.run.test_loggers import folder, journal_series, tensorboard_series
from tests.run.toy_run import Dies, fit, records
from tests.stress.campaign import prepare
from tinytf.cli import sync
from tinytf.errors import UserError
from tinytf.run.callbacks.journal import JournalCallback
from tinytf.run.config import MlflowConfig
from tinytf.run.loggers import build_loggers, follower
from tinytf.run.loggers.base import OtherLogger
from tinytf.run.loggers.follower import Follower
from tinytf.utils.text import HIDDEN

__all__ = ["folder"]  # A fixture.

PATIENCE = 120.0
COMMIT = "1234567890123456789012345678901234567890"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"FIRST_PAUSE": 0.02, "LONGEST_PAUSE": 0.5, "SILENCE": 0.2, "CONNECT": 0.2, "END_OF_RUN": 2.0}
    for name, seconds in {**times, "END_OF_STOPPED_RUN": 0.3}.items():
        monkeypatch.setattr(follower, name, seconds)


@pytest.fixture
def lines() -> Iterator[list[tuple[str, str]]]:
    """What is logged of trackers: level and line."""
    found: list[tuple[str, str]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append((record.levelname, record.getMessage()))

    handler = Handler()
    follower.log.addHandler(handler)
    follower.log.setLevel(logging.INFO)
    yield found
    follower.log.removeHandler(handler)
    follower.log.setLevel(logging.NOTSET)


class At(Callback):
    """Calls functions at the ends of steps."""

    def __init__(self, calls: dict[int, Callable[[], object]]) -> None:
        self.calls = calls

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.calls.get(trainer.global_step, int)()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def train(
    folder: Path, loggers: list[Follower], calls: dict[int, Callable[[], object]], dies: Callback | None = None,
    tracking: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    config = {
        "model": {"d_model": 16},
        "tracking": {"tensorboard": False, "wandb": None, "mlflow": None} | (tracking or {}),
    }
    start = {"run_id": "abc", "config": config, "provenance": {"git": {"commit": COMMIT}}}
    fit(folder, [JournalCallback(start, folder), At(calls)], loggers=loggers, val_every=3, dies=dies)


class Flaky(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.broken = True
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self.broken:
            raise RuntimeError("no\nservice")
        self.rows.append((step, metrics))


def test_rows_that_a_logger_refused_reach_it_when_it_works_again(folder: Path, lines: list[tuple[str, str]]) -> None:
    logger = Flaky()
    loggers = build_loggers(folder, "id", tensorboard=False, others=[logger])
    train(folder, loggers, {3: lambda: until(lambda: lines), 7: lambda: setattr(logger, "broken", False)})
    outside = ("event", "time", "step")
    rows = [(row["step"], {k: v for k, v in row.items() if k not in outside}) for row in records(folder, "metrics")]
    assert logger.rows == rows
    assert [level for level, _ in lines] == ["WARNING", "INFO"]
    assert lines[0][1].startswith("trainer.logger Flaky: no service; the run goes on, and its rows are kept in ")
    (warning,) = [
        row for row in records(folder, "warning") if row["logger"] == follower.__name__ and row["level"] == "WARNING"
    ]
    assert warning["message"] == lines[0][1]


class Hangs(Flaky):
    @property
    def experiment(self) -> Any:
        return threading.Event().wait()


def test_a_logger_that_hangs_holds_up_neither_the_run_nor_its_stop(folder: Path, lines: list[tuple[str, str]]) -> None:
    loggers = build_loggers(folder, "id", tensorboard=False, others=[Hangs()])
    began = time.monotonic()
    with pytest.raises(SystemExit):
        train(folder, loggers, {4: lambda: time.sleep(0.3)}, Dies(9, SystemExit(143)))
    assert time.monotonic() - began < 20  # It hangs for ever; what is waited for is 0.5 s.
    assert [step for step, _ in journal_series(folder)["train/loss"]] == [2, 4, 6, 8]
    assert records(folder, "end")[0]["detail"] == "SIGTERM"
    assert [level for level, _ in lines] == ["WARNING", "WARNING"]
    assert "it has not answered for" in lines[0][1]
    assert "it has not got all of the run" in lines[1][1]


def test_a_logger_is_still_what_it_is(tmp_path: Path) -> None:
    (logger,) = build_loggers(tmp_path, "id", tensorboard=False, others=[CSVLogger(tmp_path, "here")])
    assert isinstance(logger, CSVLogger)
    assert isinstance(logger, Follower)
    assert logger.log_dir == str(tmp_path / "here" / "version_0")
    assert logger.root_dir == str(tmp_path / "here")
    logger.log_metrics({"mine": 1.0}, 3)  # As Lightning's LearningRateMonitor does.
    assert logger.experiment.metrics_file_path.startswith(str(tmp_path))
    logger.finalize("success")
    assert "mine" in (tmp_path / "here" / "version_0" / "metrics.csv").read_text()


def test_a_logger_that_hangs_is_waited_for_once(tmp_path: Path) -> None:
    follows = Follower(Hangs(), tmp_path)
    began = time.monotonic()
    for _ in range(20):
        follows.experiment.add_image("x")
    assert time.monotonic() - began < 10 * follower.CONNECT


def test_an_answer_comes_while_it_is_looked_how_long_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follows = Follower(Flaky(), tmp_path)
    follows._asked_at = 0.0

    def now() -> float:
        follows._asked_at = None
        return 0.0

    monkeypatch.setattr(follower, "time", SimpleNamespace(monotonic=now))
    follows.wake()


def test_an_end_that_comes_while_the_thread_looks_for_it_is_seen(tmp_path: Path) -> None:
    follows = Follower(Flaky(), tmp_path)

    class Closing(threading.Event):
        def is_set(self) -> bool:
            answer = super().is_set()
            self.set()  # As `_finish` does right after.
            follows._wake.set()
            return answer

    follows._closing = Closing()
    follows._start()
    assert follows._thread is not None
    follows._thread.join(5)
    assert not follows._thread.is_alive()


def test_a_row_that_a_logger_could_not_save_is_not_given_to_it_again() -> None:
    logger = Flaky()
    logger.broken = False
    saves: list[int] = []

    def save() -> None:
        saves.append(len(logger.rows))
        if len(saves) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    logger.save = save  # type: ignore[method-assign]
    row = {"event": "metrics", "time": "2026-01-31T12:00:00.000000Z", "step": 2, "x": 1.0}
    pending, tracker = deque([row]), OtherLogger(logger)
    with pytest.raises(OSError, match="No space"):
        tracker.send(pending)
    tracker.connect()
    tracker.send(pending)
    assert logger.rows == [(2, {"x": 1.0})]
    assert saves == [1, 1]


def test_what_a_tracker_is_called_and_says_has_no_secret(tmp_path: Path) -> None:
    for place in range(20):  # Wherever it is cut.
        before = "." * (follower.LONGEST_REASON - 25 + place)
        assert "sec" not in follower.explain(RuntimeError(f"{before} http://user:secret@host/"))
    pytest.importorskip("mlflow")
    (logger,) = build_loggers(tmp_path, "id", tensorboard=False, mlflow=MlflowConfig(uri="http://user:secret@host"))
    assert logger.tracker.key == f"tracking.mlflow http://{HIDDEN}@host"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """TensorBoard's folder, which cannot be written to while it is broken."""
    state = {"broken": False}
    write = RecordWriter.write

    def fails(self: RecordWriter, data: bytes) -> None:
        if state["broken"]:
            raise OSError(errno.EIO, "Input/output error")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", fails)
    # Files of one second are read in the order of their names, and 10 comes before 9: this count is the process's.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    return state


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("mended", ["in the run", "later"])
def test_a_tensorboard_folder_that_cannot_be_written(
    mended: str, folder: Path, lines: list[tuple[str, str]], disk: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    def mend() -> None:
        until(lambda: lines)
        disk["broken"] = mended == "later"

    loggers = build_loggers(folder, "id")
    train(folder, loggers, {5: lambda: disk.update(broken=True), 9: mend}, tracking={"tensorboard": True})
    assert lines[0][1].startswith("tracking.tensorboard: Input/output error; the run goes on, and its rows are kept")
    if mended == "later":
        assert f"tinytf sync {folder}" in lines[-1][1]
        disk["broken"] = False
        assert sync.run([str(folder), f"--root={folder.parents[1]}"]) == 0
        assert "tracking.tensorboard: all 10 rows are there" in capsys.readouterr().out
    else:
        assert [level for level, _ in lines] == ["WARNING", "INFO"]
    for name, series in journal_series(folder).items():
        found = tensorboard_series(folder, name)
        assert [step for step, _ in found] == [step for step, _ in series]
        assert [value for _, value in found] == pytest.approx([value for _, value in series])


class Server:
    """`mlflow server` on SQLite, with its own data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1", "--port", str(self.port),
            "--workers", "1",
        ]  # fmt: skip
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        until(self.answers)

    def answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.address}/health", timeout=1).status == 200  # type: ignore[no-any-return]
        except OSError:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for package in ("mlflow", "flask", "flask_cors", "sqlalchemy", "alembic"):
        pytest.importorskip(package, reason="mlflow's server is not installed: the extra dev has what it needs")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    server = Server(tmp_path / "server")
    yield server
    server.kill()


def test_an_mlflow_server_that_comes_late_and_is_killed_has_all_rows_once(
    folder: Path, server: Server, lines: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server.address)

    def history(name: str) -> list[tuple[int, float]]:
        runs = client.search_runs([client.get_experiment_by_name("tinytf").experiment_id])
        if not runs:
            return []
        values = client.get_metric_history(runs[0].info.run_id, name)
        return sorted((value.step, value.value) for value in values)

    def kill() -> None:  # In mid-run, once it has what came before it was there.
        until(lambda: lines[1:])
        until(lambda: history("train/loss")[-1:] and history("train/loss")[-1][0] == 6)
        server.kill()

    settings = {"experiment": "tinytf", "uri": server.address}
    loggers = build_loggers(folder, "abc", tensorboard=False, mlflow=MlflowConfig(**settings))
    train(folder, loggers, {4: server.start, 7: kill}, tracking={"mlflow": settings})
    assert "View run" not in capsys.readouterr().out
    assert [level for level, _ in lines][:3] == ["WARNING", "INFO", "WARNING"]
    assert lines[0][1].startswith(f"tracking.mlflow {server.address}: Connection refused; the run goes on")
    assert [step for step, _ in journal_series(folder)["train/loss"]] == [2, 4, 6, 8, 10, 12]

    server.start()
    for _ in range(2):  # The second finds nothing to send.
        assert sync.run([str(folder), f"--root={folder.parents[1]}"]) == 0
        assert f"tracking.mlflow {server.address}: all 10 rows are there" in capsys.readouterr().out
        for name, series in journal_series(folder).items():
            assert history(name) == series
    (run,) = client.search_runs([client.get_experiment_by_name("tinytf").experiment_id])
    assert (run.info.status, run.data.tags["mlflow.source.git.commit"]) == ("FINISHED", COMMIT)
    assert run.data.params["model.d_model"] == "16"
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} == {"best", "config", "provenance"}


def test_a_signal_ends_a_run_whose_mlflow_server_hangs(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    prepare(tmp_path)
    with socket.socket() as listens:
        listens.bind(("127.0.0.1", 0))
        listens.listen()  # It takes connections, and answers none.
        address = f"http://127.0.0.1:{listens.getsockname()[1]}"
        settings = {"trainer.max_steps": 100_000, "tracking.mlflow": json.dumps({"uri": address})}
        process = Fit(tmp_path, settings).until_step(2).signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.ended() == 128 + signal.SIGTERM, process.said()
    # 5 s for the tracker; the rest is the end of a process with torch in it, on a busy machine.
    assert time.monotonic() - began < 45
    assert f"tracking.mlflow {address}: it has not got all of the run" in process.said()


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ({}, ["--root=elsewhere"], "it is not below --root elsewhere; give the folder of your runs there"),
        ({}, [], "its config names no tracker; give --mlflow_uri"),
        ({"config": {}}, [], "does not say where it was tracked"),
        (
            {"config": {"tracking": {"wandb": None, "tensorboard": False, "mlflow": {"uri": f"http://{HIDDEN}@h"}}}},
            [],
            f"tracking.mlflow.uri http://{HIDDEN}@h: what {HIDDEN} stands for is not stored; give the whole address",
        ),
    ],
)
def test_what_sync_refuses(change: dict[str, Any], flags: list[str], message: str, folder: Path) -> None:
    if "mlflow" in message:
        pytest.importorskip("mlflow")
    config = {"tracking": {"wandb": None, "tensorboard": False, "mlflow": None}}
    start = {"event": "start", "time": "2026-01-31T12:00:00.000000Z", "step": 0, "run_id": "a", "config": config}
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps(start | change) + "\n")
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        sync.run([str(folder), f"--root={folder.parents[1]}", *flags])
