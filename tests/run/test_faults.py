"""What a machine, a file system or a user does to a run, and what the run must not lose over it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import DummyLogger

from tests.run.test_loggers import tensorboard_series
from tests.stress.campaign import CASES, arguments, at_instant, end_of, prepare, run, unbroken
from tests.stress.killing import attempt
from tinytf.cli.main import main
from tinytf.cli.runs import summary
from tinytf.run import recovery
from tinytf.run.callbacks.exact_resume import ExactResume
from tinytf.run.config import CheckpointConfig, TrackingConfig
from tinytf.run.run import OptionalCallbacks, Run

SHORT: dict[str, Any] = {"trainer.max_steps": 4, "trainer.val_check_interval": 2}


def only_run(folder: Path) -> Path:
    (directory,) = (folder / "checkpoints" / "killed").iterdir()
    return directory


def fresh(case: dict[str, Any]) -> list[str]:
    """The command line of a new run."""
    return [flag for flag in arguments(case) if not flag.startswith("--ckpt_path")]


def said(folder: Path) -> str:
    return (folder / "attempts.log").read_text()


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_the_same_command_on_a_finished_run_takes_nothing_away(tmp_path: Path) -> None:
    prepare(tmp_path)
    run(SHORT, tmp_path)
    directory = only_run(tmp_path)
    before = {path: path.read_bytes() for path in directory.iterdir() if path.name != ".lock"}
    run(SHORT, tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    for name in ("train/loss", "val/loss"):
        assert [step for step, _ in tensorboard_series(directory, name)][-1] == 4


STOPS_EARLY = {
    **CASES["plain"],
    "trainer.val_check_interval": 2,
    "checkpoint.every_n_steps": 0,
    "trainer.callbacks": json.dumps(
        {
            "class_path": "lightning.pytorch.callbacks.EarlyStopping",
            "init_args": {"monitor": "val/loss", "patience": 1, "min_delta": 99.0},
        }
    ),
}


def test_a_run_that_was_killed_after_it_decided_to_stop_early_has_stopped(tmp_path: Path) -> None:
    """From the decision, in the second validation, on: at every instant that is left."""
    reference = unbroken(STOPS_EARLY, tmp_path / "unbroken")
    assert reference.end.rows[-1]["step"] == 4
    assert reference.end.files[-1] == "step-0000004.ckpt"
    assert "stopped early at step 4 of 12" in said(tmp_path / "unbroken")
    assert "(EarlyStopping: Monitored metric val/loss did not improve" in said(tmp_path / "unbroken")
    assert summary(only_run(tmp_path / "unbroken")).state == "stopped early"
    for back in (1, 4, 7, 10):
        folder = tmp_path / str(back)
        prepare(folder)
        code, _ = at_instant(reference.instants - back)(arguments(STOPS_EARLY), folder)
        assert code == -9
        run(STOPS_EARLY, folder)
        assert reference.end.differs(end_of(folder)) == [], back
        end = rows(only_run(folder))[-1]
        assert (end["event"], end["reason"], end["stopped_early"]) == ("end", "finished", True), back


def test_without_early_stopping_in_the_config_a_stopped_run_trains_on() -> None:
    for stopped, callbacks, stops in ((True, ["EarlyStopping"], True), (True, [], False), (False, ["one"], False)):
        trainer: Any = SimpleNamespace(
            early_stopping_callbacks=callbacks, checkpoint_callbacks=[], should_stop=False, global_step=4
        )
        resumed = ExactResume()
        resumed.stopped = stopped
        resumed.on_train_start(trainer, cast(Any, None))
        assert trainer.should_stop is stops


@pytest.mark.parametrize("lost", [1, 3])
def test_rows_that_a_checkpoint_counted_and_its_journal_lacks_are_named(lost: int, tmp_path: Path) -> None:
    prepare(tmp_path)
    run(SHORT, tmp_path)
    journal = only_run(tmp_path) / "metrics.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    metrics = [line for line in lines if '"event": "metrics"' in line]
    journal.write_text("".join(line for line in lines if line not in metrics[-lost:] and '"end"' not in line))
    more = {**SHORT, "trainer.max_steps": 6, "model.schedule": "Constant"}
    run(more, tmp_path)
    message = f"it has {len(metrics) - lost} rows of metrics, but its checkpoint counted {len(metrics)}"
    assert message in said(tmp_path)
    assert any(message in row.get("message", "") for row in rows(only_run(tmp_path)))
    # What is lost is counted once: the next resume starts from what there is.
    run({**more, "trainer.max_steps": 8}, tmp_path)
    assert said(tmp_path).count("rows of metrics") == 1


def test_a_torn_first_line_blocks_no_resume(tmp_path: Path) -> None:
    prepare(tmp_path)
    run(SHORT, tmp_path)
    journal = only_run(tmp_path) / "metrics.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0][:40] + b"\n", *lines[1:]]))
    run({**SHORT, "trainer.max_steps": 6}, tmp_path)
    assert rows(only_run(tmp_path))[-1]["event"] == "end"
    assert "resuming from step 4 of 6" in said(tmp_path)


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_folder_in_the_place_of_a_link_is_one_line(name: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    run(SHORT, tmp_path)
    link = only_run(tmp_path) / f"{name}.ckpt"
    link.unlink()
    (link / "mine").mkdir(parents=True)
    code, _ = attempt(arguments({**SHORT, "trainer.max_steps": 6}), tmp_path)
    assert code == 2, said(tmp_path)
    assert f"{name}.ckpt: it is a folder, but a run keeps a link of that name; move it away" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    assert (link / "mine").is_dir()


def test_a_file_system_without_links_keeps_every_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    linked = unbroken(CASES["plain"], tmp_path_factory.mktemp("linked"))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    prepare(tmp_path)
    code, _ = at_instant(linked.instants * 2 // 3)(arguments(CASES["plain"]), tmp_path)
    assert code == -9
    run(CASES["plain"], tmp_path)
    directory = only_run(tmp_path)
    for name in ("best", "last"):
        pointer = directory / f"{name}.ckpt"
        assert not pointer.is_symlink()
        code, _ = attempt(["validate", f"--ckpt_path={pointer}"], tmp_path)
        assert code == 0, said(tmp_path)
        target = directory / pointer.read_text()
        pointer.unlink()
        shutil.copy(target, pointer)  # For `end_of`, which opens it with torch.
    assert linked.end.differs(end_of(tmp_path)) == []


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):

        def refuse(_: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(recovery, "_lock", refuse)
        caplog.clear()
        recovery.acquire_run_lock(tmp_path)
        assert f"run {tmp_path} cannot be locked" in caplog.text
        recovery.release_run_locks()


def test_another_process_than_the_first_neither_reads_nor_writes_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("metrics.jsonl", "config.yaml", "best.ckpt"):
        os.mkfifo(name)  # Whoever opens one waits for ever.
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    config = {"name": "a", "checkpoint": {"dir": "runs"}, "trainer": {"max_steps": 1, "enable_progress_bar": False}}
    tracking = Namespace({**vars(TrackingConfig(git_diff=True)), **dict.fromkeys(OptionalCallbacks._fields)})
    with Run.open(config, {}) as opened:
        callbacks = opened.callbacks(tracking, CheckpointConfig())
        opened.checkpoint_io(callbacks)
        assert [type(logger) for logger in opened.loggers(tracking)] == [DummyLogger]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "config.yaml", "best.ckpt"}


REFUSED = [
    ["--trainer.devices=-2"],
    ["--trainer.devices=[0,0]"],
    ["--trainer.strategy=nope"],
    ["--model.optimizer=torch.optim.SparseAdam"],
    ["--tracking.norms.every_n_steps=3", "--trainer.log_every_n_steps=2"],
]


@pytest.mark.parametrize("flags", REFUSED, ids=lambda flags: flags[0])
def test_a_refused_constructor_leaves_no_run_that_last_would_take(flags: list[str], tmp_path: Path) -> None:
    prepare(tmp_path)
    run(SHORT, tmp_path)
    before = only_run(tmp_path)
    code, _ = attempt([*fresh(SHORT), *flags], tmp_path)
    assert code, said(tmp_path)
    assert only_run(tmp_path) == before
    code, _ = attempt(["fit", "--ckpt_path=last", "--trainer.max_steps=6"], tmp_path)
    assert code == 0, said(tmp_path)
    assert "resuming from step 4 of 6" in said(tmp_path)


def test_file_times_do_not_decide_which_run_is_the_last(tmp_path: Path) -> None:
    prepare(tmp_path)
    run(SHORT, tmp_path)
    first = only_run(tmp_path)
    assert attempt(fresh(SHORT), tmp_path)[0] == 0
    for path in [first, *first.iterdir()]:
        os.utime(path, (4e9, 4e9), follow_symlinks=False)
    run({**SHORT, "trainer.max_steps": 6}, tmp_path)
    assert rows(first)[-1]["step"] == 4
    assert rows(first.with_name("version_1"))[-1]["step"] == 6


def test_a_resume_compares_the_text_and_not_how_its_path_is_spelled(tmp_path: Path) -> None:
    prepare(tmp_path)
    run(SHORT, tmp_path)
    moved = tmp_path / "elsewhere" / "text.txt"
    moved.parent.mkdir()
    shutil.copy(tmp_path / "text.txt", moved)
    for step, spelling in ((6, "./text.txt"), (8, str(moved))):
        run({**SHORT, "trainer.max_steps": step, "data.corpus": spelling}, tmp_path)
        assert rows(only_run(tmp_path))[-1]["step"] == step
    moved.write_text(moved.read_text()[:-40])
    code, _ = attempt(arguments({**SHORT, "trainer.max_steps": 9, "data.corpus": str(moved)}), tmp_path)
    assert code == 2
    assert f"data.corpus {moved}: its text is not the one that" in said(tmp_path)


def test_what_auto_means_is_in_the_config(tmp_path: Path) -> None:
    prepare(tmp_path)
    run({**SHORT, "trainer.matmul_precision": "auto", "trainer.precision": "auto"}, tmp_path)
    assert "auto" not in [
        line.partition(": ")[2]
        for line in (only_run(tmp_path) / "config.yaml").read_text().splitlines()
        if line.strip().startswith(("matmul_precision", "precision", "compile"))
    ]


@pytest.mark.parametrize("tag", ["", "x" * 65])
def test_a_tag_that_wandb_refuses_is_named_at_the_start(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    assert main([*fresh(SHORT), "--tracking.wandb", json.dumps({"tags": ["fine", tag]})]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"tracking.wandb.tags: {tag!r} has {len(tag)} characters, but W&B takes 1 to 64" in line
    assert not list(tmp_path.rglob("version_*"))
