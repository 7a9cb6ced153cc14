"""FSDP2, two processes on the CPU, compared with one process that takes the same samples."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.end_to_end.processes import Fit, events, newest_run
from tests.stress.campaign import end_of, prepare
from tinytf.data.datamodule import TextDataModule
from tinytf.weights.checkpoint import load_model

ONE: dict[str, Any] = {
    "trainer.devices": 1,
    "trainer.strategy": "auto",
    "trainer.precision": "32-true",
    "trainer.max_steps": 16,
    "trainer.val_check_interval": 8,
    "checkpoint.every_n_steps": 4,
    "data.batch_size": 4,
    "data.global_batch_size": 8,
    "model.n_layers": 3,  # Matrices that two processes cannot share out evenly.
    "model.dropout": 0.0,
    "model.schedule.end_step": 16,
    "model.weight_decay_on": "all",
    "tracking.samples.every_n_validations": 1,
    "tracking.samples.max_new_tokens": 5,
    "tracking.norms.every_n_steps": 4,
}
SHARDED = {**ONE, "trainer.devices": 2, "trainer.strategy": "fsdp2"}


def fit(folder: Path, settings: dict[str, Any]) -> Path:
    prepare(folder)
    run = Fit(folder, settings)
    assert run.ended() == 0, run.said()
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("one"), ONE)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("sharded"), SHARDED)


def losses(folder: Path, name: str = "train/loss") -> torch.Tensor:
    return torch.tensor([row[name] for row in events(folder, "metrics") if name in row], dtype=torch.float64)


def last(folder: Path) -> dict[str, Any]:
    run = newest_run(folder)
    assert run is not None
    content: dict[str, Any] = torch.load(run / "last.ckpt", weights_only=True)
    return content


def assert_same_training(folder: Path, reference: Path) -> None:
    """The losses, the gradient's norm and the norms of each layer are those of the other run."""
    mine = losses(folder)
    theirs = losses(reference)[: len(mine)]
    assert abs(mine[0] - theirs[0]) < 1e-5
    torch.testing.assert_close(mine, theirs, atol=5e-4, rtol=0)
    for name in ("train/grad_norm", "layers/2/weight_norm", "layers/0/update_norm", "embed/grad_norm"):
        values = losses(folder, name)
        torch.testing.assert_close(values, losses(reference, name)[: len(values)], atol=1e-4, rtol=5e-3)


def test_shards_learn_what_one_process_learns(sharded: Path, one: Path) -> None:
    assert_same_training(sharded, one)


def test_the_checkpoint_is_that_of_one_device(sharded: Path, one: Path) -> None:
    """Key by key, the optimizer's too: a state under another parameter's number would be of another size or value."""
    mine, theirs = last(sharded), last(one)
    assert mine["state_dict"].keys() == theirs["state_dict"].keys()
    for key, value in mine["state_dict"].items():
        torch.testing.assert_close(value, theirs["state_dict"][key], atol=5e-3, rtol=0.05)
    (state,), (other) = mine["optimizer_states"], theirs["optimizer_states"][0]
    assert state["param_groups"] == other["param_groups"]
    assert state["state"].keys() == other["state"].keys()
    for number, buffers in state["state"].items():
        assert buffers.keys() == other["state"][number].keys()
        for name, value in buffers.items():
            torch.testing.assert_close(value, other["state"][number][name], atol=5e-3, rtol=0.05)


def test_validation_counts_every_token_of_the_split_once(sharded: Path) -> None:
    """The checkpoint on one device, against the number that two processes logged."""
    run = newest_run(sharded)
    assert run is not None
    loaded = load_model(run / "last.ckpt")
    settings = {key: value for key, value in loaded.entry["config"]["data"].items() if key != "seed"}
    data = TextDataModule(**{**settings, "corpus": str(sharded / "text.txt")})
    data.prepare_data()
    data.setup()
    ids = torch.from_numpy(data.split("val").astype("int64"))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, data.seq_len):
            piece = ids[start : start + data.seq_len + 1]
            total += F.cross_entropy(loaded.model(piece[None, :-1])[0], piece[1:], reduction="sum").item()
    assert total / (len(ids) - 1) == pytest.approx(losses(sharded, "val/loss")[-1].item(), rel=1e-5)


def test_stopped_by_a_signal_to_the_group_and_resumed_it_is_bitwise_the_same(sharded: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    stopped = Fit(tmp_path, SHARDED).until_step(6).signal_group(signal.SIGTERM)
    assert stopped.ended() == 128 + signal.SIGTERM, stopped.said()
    assert stopped.said().count("SIGTERM: saved step") == 1
    step = last(tmp_path)["global_step"]
    other = tmp_path / "on one device"
    shutil.copytree(tmp_path, other, symlinks=True)
    fit(tmp_path, SHARDED)
    reference, end = end_of(sharded), end_of(tmp_path)
    # A stop saves where no periodic checkpoint would be.
    assert reference.differs(replace(end, files=reference.files)) == []
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "text.txt", "said.log", other.name}
    # One device takes twice the micro-batches of two: the steps stay what they were.
    fit(other, ONE)
    said = (other / "said.log").read_text()
    assert "resuming on 1 processes a run of 2" in said
    assert losses(other).shape == losses(sharded).shape
    assert step < len(losses(other))
    torch.testing.assert_close(losses(other), losses(sharded), atol=5e-4, rtol=0)
