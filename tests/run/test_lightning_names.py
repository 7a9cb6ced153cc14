"""The names of Lightning's insides that exact resume stands on: a release that moves one must fail here, by name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch.utils.tensorboard import SummaryWriter


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


@pytest.mark.parametrize(
    "name",
    [
        "fit_loop.total_batch_idx",
        "fit_loop.epoch_loop.batch_progress.total.processed",
        "fit_loop.epoch_loop._batches_that_stepped",
        "fit_loop.epoch_loop.val_loop.batch_progress",
        "enable_validation",
        "val_check_batch",
        "precision_plugin",
        "strategy.reduce_boolean_decision",
        "strategy.remove_checkpoint",
        "strategy.broadcast",
    ],
)
def test_a_trainer_has(name: str, trainer: Trainer) -> None:
    value: Any = trainer
    for part in name.split("."):
        assert hasattr(value, part), name
        value = getattr(value, part)


def test_a_loops_state_has_the_keys_that_are_put_right(trainer: Trainer) -> None:
    state = trainer.fit_loop.state_dict()
    assert "_batches_that_stepped" in state["epoch_loop.state_dict"]
    for key in ("epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
        counts = {"ready", "started", "processed", "completed"}
        assert set(state[key]) == {"total", "current", "is_last_batch"}
        assert set(state[key]["total"]) == set(state[key]["current"]) == counts


def test_a_best_list_has_the_keys_that_follow_the_folder(tmp_path: Any) -> None:
    state = ModelCheckpoint(dirpath=tmp_path, monitor="val/loss").state_dict()
    assert {
        "dirpath", "best_model_path", "kth_best_model_path", "kth_value", "best_k_models", "best_model_score",
    } <= set(state)  # fmt: skip


def test_a_new_best_file_is_listed_then_saved_then_the_old_one_removed() -> None:
    """What BestCheckpoints._save_checkpoint, which links, relies on."""
    source = inspect.getsource(ModelCheckpoint._update_best_and_save)
    places = [
        source.index(step) for step in ("self.best_model_path =", "self._save_checkpoint(", "_remove_checkpoint(")
    ]
    assert places == sorted(places)
    assert list(inspect.signature(ModelCheckpoint._save_checkpoint).parameters) == ["self", "trainer", "filepath"]


def test_callbacks_have_what_a_resumed_run_sets(tmp_path: Any) -> None:
    for name in ("_last_global_step_saved", "_every_n_train_steps", "_train_time_interval"):
        assert hasattr(ModelCheckpoint(dirpath=tmp_path), name)
    assert hasattr(WeightAveraging(), "_average_model")
    assert callable(WeightAveraging._swap_models)
    assert WeightAveraging()._latest_update_step == 0
    assert hasattr(torch.optim.swa_utils.AveragedModel(torch.nn.Linear(1, 1)), "use_buffers")


def test_a_fit_that_is_already_done_returns_before_its_hooks() -> None:
    """Why the end of such a run is mended in on_fit_end and in tinytf.run.recovery."""
    source = inspect.getsource(_FitLoop.run)
    assert source.index("if self.skip") < source.index("self.on_run_start()")


@pytest.mark.parametrize("name", ["parse_arguments", "add_default_arguments_to_parser", "add_arguments_to_parser"])
def test_the_command_line_overrides(name: str) -> None:
    assert callable(getattr(LightningCLI, name))


def test_the_launcher_starts_processes_as_lightnings_does() -> None:
    assert callable(_set_num_threads_if_needed)
    source = inspect.getsource(_SubprocessScriptLauncher)
    assert "def _call_children_scripts(self)" in source
    assert "self.procs" in source
    assert "_launcher" in inspect.getsource(Strategy)
    assert "self._data_parallel_size" in inspect.getsource(ModelParallelStrategy.setup_environment)


def test_torch_clips_with_a_norm_that_is_known() -> None:
    for name in ("get_total_norm", "clip_grads_with_norm_"):
        assert callable(getattr(torch.nn.utils, name))
    assert callable(LightningModule.configure_gradient_clipping)


def test_the_loggers_have_what_ours_use() -> None:
    assert "_mlflow_client" in inspect.getsource(MLFlowLogger)
    assert "_run_id" in inspect.getsource(MLFlowLogger)
    assert "_experiment_name" in inspect.getsource(MLFlowLogger)
    assert "_wandb_init" in inspect.getsource(WandbLogger)
    assert callable(SummaryWriter._get_file_writer)
