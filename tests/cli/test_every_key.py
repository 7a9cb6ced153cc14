"""Each key of `tinytf fit`, changed alone, changes what is built: no key is only declared."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from tests.data.shards import documents
from tinytf.cli import fit
from tinytf.cli.config.parser import CommandLine, parser_of
from tinytf.run.callbacks.journal import JournalCallback
from tinytf.training.trainer import Trainer

CORPUS, RECORDS, OTHER, FOLDER, LONG = "<corpus>", "<records>", "<other>", "<folder>", "<long>"
"""Stand for a text, a file of records with the fields text and body, another text, a folder of many, and a
long one."""

VALUES: dict[str, Any] = {
    "seed_everything": 1, "name": "other",
    "trainer.max_steps": 29, "trainer.val_check_interval": 7, "trainer.log_every_n_steps": 3,
    "trainer.accumulate_grad_batches": 2, "trainer.gradient_clip_val": 0.5, "trainer.precision": "64-true",
    "trainer.matmul_precision": "high", "trainer.num_sanity_val_steps": 1, "trainer.enable_model_summary": True,
    "trainer.strategy": "ddp", "trainer.devices": 2, "trainer.num_nodes": 2,
    "trainer.logger": [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "."}}],
    "trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}],
    "trainer.min_steps": 5, "trainer.limit_val_batches": 2, "trainer.enable_progress_bar": False,
    "trainer.gradient_clip_algorithm": "value", "trainer.deterministic": True, "trainer.benchmark": True,
    "trainer.inference_mode": False, "trainer.profiler": "simple", "trainer.detect_anomaly": True,
    "trainer.plugins": [{"class_path": "lightning.fabric.plugins.environments.LightningEnvironment"}],
    "trainer.enable_autolog_hparams": False,
    "model.optimizer": "torch.optim.SGD", "model.schedule": "tinytf.training.Constant",
    "model.weight_decay_on": "all", "model.compile": True, "model.activation_checkpointing": True,
    "model.on_nonfinite": "skip", "model.freeze": ["embed_tokens.*"],
    "model.d_model": 32, "model.n_heads": 4, "model.n_layers": 1, "model.n_kv_heads": 1,
    "model.d_ff": 96, "model.dropout": 0.1, "model.max_seq_len": 80,
    "model.qk_norm": False, "model.rope_theta": 500.0, "model.norm_eps": 1e-6, "model.head_dim": 24,
    "model.tie_embeddings": False, "model.rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "data.batch_size": 4, "data.global_batch_size": 16, "data.seq_len": 32, "data.num_workers": 1,
    "data.corpus": OTHER, "data.tokenizer": "bpe", "data.vocab_size": 285, "data.val_fraction": 0.3,
    "data.test_fraction": 0.3, "data.val_corpus": OTHER, "data.test_corpus": OTHER, "data.cache_dir": "elsewhere",
    "data.split_by": "document", "data.text_field": "body", "data.bpe_sample_bytes": 100_000,
    "data.prepare_processes": 1, "data.mask_documents": True,
    "checkpoint.dir": "elsewhere", "checkpoint.save_top_k": 1, "checkpoint.every_n_steps": 9,
    "checkpoint.keep_last": 1,
    "tracking.tensorboard": False, "tracking.wandb": {"project": "mine"}, "tracking.mlflow": {"experiment": "mine"},
    "tracking.hostname": True,
    "tracking.profile.start_step": 3, "tracking.profile.steps": 2, "tracking.norms.every_n_steps": 4,
    "tracking.loss.smoothing": 0.5, "tracking.loss.spike_factor": 3.0, "tracking.samples.every_n_validations": 5,
    "tracking.samples.prompts": ["A"], "tracking.samples.max_new_tokens": 3, "tracking.samples.temperature": 0.1,
    "export.at_end": True, "export.formats": ["gguf"],
}  # fmt: skip

ALSO: dict[str, dict[str, Any]] = {
    "data.vocab_size": {"data.tokenizer": "bpe", "data.vocab_size": 280},
    "data.bpe_sample_bytes": {"data.corpus": LONG, "data.tokenizer": "bpe", "data.vocab_size": 300},
    "data.tokenizer": {"data.vocab_size": 270},
    "data.split_by": {"data.corpus": FOLDER},
    "data.text_field": {"data.corpus": RECORDS},
    "data.mask_documents": {"data.corpus": RECORDS},
    "export.formats": {"export.at_end": True},
    "trainer.devices": {"trainer.strategy": "ddp"},
    "trainer.num_nodes": {"trainer.strategy": "ddp"},
}
"""What a key needs beside it to matter; it is on both sides of the comparison."""

UNSEEN = {
    "model.adapter": "needs a base and peft, which takes 7 s to import: tests/training/test_adapter.py",
    "ckpt_path": "what it does is all of tests/end_to_end/test_resume.py",
    "model.base": "what it does is all of tests/weights",
    "trainer.limit_test_batches": "refused: fit has no such batches",
    "trainer.limit_predict_batches": "refused: fit has no such batches",
    "trainer.accelerator": "on a machine without another one, auto is cpu",
    "tracking.git_diff": "needs a changed git checkout: tests/run/test_provenance.py writes its patch",
    "data.prepare_processes": "promises to change nothing: tests/data compares the token ids",
}
NOT_COMPARED = ("config", "start", "provenance", "_began")
"""Attributes that hold the config itself, in which every key would be seen, or the time."""


def flags(values: Mapping[str, Any], places: Mapping[str, str]) -> list[str]:
    words = []
    for key, value in values.items():
        value = places.get(value, value) if isinstance(value, str) else value
        words.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    return words


def state(value: Any, path: str = "", seen: set[int] | None = None) -> dict[str, Any]:
    """Every plain value that can be reached from an object, by its place."""
    seen = set() if seen is None else seen
    if value is None or isinstance(value, (bool, int, float, str, Path, torch.dtype, torch.device)):
        return {path: str(value)}
    if id(value) in seen or isinstance(value, (FunctionType, MethodType, ModuleType)):
        return {}
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        raw = value.detach().to(torch.float64).contiguous().numpy().tobytes()
        return {path: f"{tuple(value.shape)} {value.dtype} {hashlib.sha256(raw).hexdigest()}"}
    if isinstance(value, np.ndarray):
        return {path: hashlib.sha256(value.tobytes()).hexdigest()}
    found = {path: type(value).__name__}
    if isinstance(value, Mapping):
        children = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        children = [(str(number), each) for number, each in enumerate(value)]
    else:
        children = [(key, each) for key, each in getattr(value, "__dict__", {}).items() if key not in NOT_COMPARED]
    for key, each in children:
        found.update(state(each, f"{path}.{key}", seen))
    return found


def built(values: Mapping[str, Any], folder: Path, places: Mapping[str, str]) -> dict[str, Any]:
    """What `fit` hands to its Trainer, the Trainer, the first batches, and what it exports after it."""
    found: dict[str, Any] = {}

    def capture(self: Trainer, model: LightningModule, datamodule: Any, ckpt_path: Any) -> None:
        model.trainer, datamodule.trainer = self, self
        optimizers = model.configure_optimizers()
        batches = {
            name: next(iter(getattr(datamodule, f"{name}_dataloader")())) for name in datamodule.prepared.store.tokens
        }
        loader = datamodule.train_dataloader()
        (start,) = (callback.start for callback in self.callbacks if isinstance(callback, JournalCallback))
        reached = {
            "trainer": self,
            "model": model,
            "optimizers": optimizers,
            "batches": batches,
            "workers": loader.num_workers,
            "data": vars(datamodule),
            "matmul": torch.get_float32_matmul_precision(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "benchmark": torch.backends.cudnn.benchmark,
            "anomaly": self._detect_anomaly,
            "provenance": sorted(start["provenance"]),
        }
        found.update(state(reached))

    defaults = {"data.corpus": CORPUS, "checkpoint.dir": "runs", "data.cache_dir": str(folder.parent / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.backends.cudnn, "benchmark", False)
        torch.use_deterministic_algorithms(False)
        patch.setenv("WANDB_MODE", "offline")
        patch.setattr(fit, "export_at_end", lambda path, config, loggers: found.update(exported=config.formats))
        patch.setattr(fit, "export_best", lambda trainer, config: found.update(exported=str(config)))
        tiny = ["--config", str(Path(__file__).parents[2] / "configs/tiny.yaml")]
        cli = CommandLine("fit", [*tiny, *flags({**defaults, **values}, places)])
        patch.setattr(Trainer, "fit", capture)
        fit.fit(cli)
    return found


def nested(section: str) -> dict[str, Any]:
    """A changed value for each number among the arguments of the default class of a section."""
    from tinytf import training

    kind = getattr(training, {"model.optimizer": "MuonAdamW", "model.schedule": "Linear"}[section])
    numbers = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if isinstance(parameter.default, (int, float))
    }
    changed = {}
    for name, value in numbers.items():
        if isinstance(value, bool):
            changed[f"{section}.{name}"] = not value
        else:
            changed[f"{section}.{name}"] = value + 1 if isinstance(value, int) else 0.7 * value + 0.01
    return changed


ALL = {**VALUES, **nested("model.optimizer"), **nested("model.schedule")}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("corpora")
    texts = documents(60)
    (folder / "corpus.txt").write_text("\n".join(texts))
    (folder / "many").mkdir()
    for number, text in enumerate(documents(60, seed=1)):
        (folder / "many" / f"{number}.txt").write_text(text * 3)
    (folder / "long.txt").write_text("\n".join(documents(4000)))
    (folder / "other.txt").write_text("\n".join(reversed(texts)))
    with (folder / "both.jsonl").open("w") as file:
        for text in texts:
            file.write(json.dumps({"text": text, "body": text[::-1]}) + "\n")
    names = {CORPUS: "corpus.txt", OTHER: "other.txt", RECORDS: "both.jsonl", FOLDER: "many", LONG: "long.txt"}
    return {place: str(folder / name) for place, name in names.items()}


def test_the_table_names_every_key() -> None:
    actions = [action for action in parser_of("fit")._actions if hasattr(action, "_typehint")]
    ours = {action.dest for action in actions if not action.dest.endswith(".help")}
    decided_elsewhere = {"model.seed", "model.vocab_size", "model.bytes_per_token", "data.seed"}
    assert {*VALUES, *UNSEEN} == ours - decided_elsewhere


@pytest.mark.parametrize("key", sorted(set(ALL) - set(UNSEEN)))
def test_every_key_changes_what_is_built(key: str, places: dict[str, str], tmp_path: Path) -> None:
    if key in ("tracking.wandb", "tracking.mlflow"):
        pytest.importorskip(key.rpartition(".")[2])
    also = ALSO.get(key, {})
    found = []
    for values in (also, {**also, key: ALL[key]}):
        folder = tmp_path / "here"
        folder.mkdir()
        found.append(built(values, folder, places))
        folder.rename(tmp_path / f"done-{len(found)}")
    before, after = found
    assert before != after, f"nothing that is built depends on {key}"


def test_two_builds_of_one_config_are_equal(places: dict[str, str], tmp_path: Path) -> None:
    found = []
    for number in range(2):
        folder = tmp_path / "here"
        folder.mkdir()
        found.append(built({}, folder, places))
        folder.rename(tmp_path / f"done-{number}")
    before, after = found
    assert {place for place in before | after if before.get(place) != after.get(place)} == set()
