"""LanguageModel as a Lightning user knows it: rebuilt from a checkpoint, trained on any loader, called as a module."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

import tinytf
from tinytf.cli.main import main
from tinytf.training.lightning_module import LanguageModel

CONFIG = {"vocab_size": 50, "d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 16}


def loader() -> DataLoader:
    ids = torch.arange(64 * 17).reshape(64, 17) % 50
    return DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=8)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    few = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    module = ["--model.weight_decay_on", "all", "--model.activation_checkpointing", "true"]
    assert main(["fit", "--config", "tiny", *few, *module, "--model.on_nonfinite", "skip"]) == 0
    return tmp_path / "checkpoints" / "tiny" / "version_0"


def test_load_from_checkpoint_rebuilds_the_trained_model(run_dir: Path) -> None:
    module = LanguageModel.load_from_checkpoint(run_dir / "best.ckpt")
    loaded = tinytf.load(run_dir / "best.ckpt", device="cpu")
    tokens = torch.arange(20)[None]
    assert module.config == loaded.model.config
    assert set(module.bytes_per_token) == {"train", "val"}
    assert (module.weight_decay_on, module.activation_checkpointing, module.on_nonfinite) == ("all", True, "skip")
    with torch.inference_mode():
        assert torch.equal(module.eval()(tokens), loaded.model(tokens))


def test_load_from_checkpoint_runs_nothing_that_the_file_names(run_dir: Path, tmp_path: Path) -> None:
    content = torch.load(run_dir / "best.ckpt", weights_only=True)
    content["hyper_parameters"] |= {"_instantiator": "os.system", "_class_path": "os.system"}
    torch.save(content, tmp_path / "hostile.ckpt")
    with pytest.raises(ValueError, match="not in the allowlist"):
        LanguageModel.load_from_checkpoint(tmp_path / "hostile.ckpt")


@pytest.mark.parametrize("steps", [{"max_epochs": 2}, {"max_steps": 12}])
def test_it_trains_on_plain_loaders_and_logs_to_an_own_logger(steps: dict[str, int], tmp_path: Path) -> None:
    module = LanguageModel(**CONFIG)
    logger = CSVLogger(tmp_path)
    trainer = Trainer(
        **steps, accelerator="cpu", logger=logger, log_every_n_steps=4, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    before = float(trainer.validate(module, loader(), verbose=False)[0]["val/loss"])
    trainer.fit(module, loader(), loader())
    assert float(trainer.callback_metrics["val/loss"]) < before
    assert "val/bits_per_byte" not in trainer.callback_metrics, "nobody said how many bytes a token has"
    rows = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    assert {"train/loss", "train/grad_norm", "lr", "muon_lr", "val/loss"} <= set(rows[0].split(","))


def test_it_trains_with_any_data_module(tmp_path: Path) -> None:
    class Numbers(LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return loader()

    module = LanguageModel(**CONFIG)
    before = module.model.embed_tokens.weight.detach().clone()
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=Numbers())
    assert not torch.equal(module.model.embed_tokens.weight, before)


def test_forward_is_the_model() -> None:
    module, tokens = LanguageModel(**CONFIG).eval(), torch.arange(8)[None]
    assert torch.equal(module(tokens), module.model(tokens))


def test_an_evaluation_is_the_mean_over_tokens_not_over_batches() -> None:
    """Batches of unequal size and padding: each target counts once, whatever batch it is in."""
    ids = torch.arange(7 * 17).reshape(7, 17) % 50
    targets = ids[:, 1:].clone()
    targets[-1, 5:] = -100
    batches = DataLoader(TensorDataset(ids[:, :-1], targets), batch_size=3)
    module = LanguageModel(**CONFIG, bytes_per_token={"val": 2.0, "test": 4.0})
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (val,) = trainer.validate(module, batches, verbose=False)
    (test,) = trainer.test(module, batches, verbose=False)
    logits = module.eval()(ids[:, :-1]).double()
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
    assert val["val/loss"] == test["test/loss"] == pytest.approx(loss, rel=1e-6)
    assert val["val/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert val["val/bits_per_byte"] == pytest.approx(loss / math.log(2) / 2.0, rel=1e-6)
    assert test["test/bits_per_byte"] == pytest.approx(loss / math.log(2) / 4.0, rel=1e-6)


def test_a_loss_that_is_not_a_number_is_not_left_out_of_the_mean() -> None:
    module = LanguageModel(**CONFIG)
    with torch.no_grad():
        module.model.norm.weight.fill_(float("nan"))
    (val,) = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).validate(
        module, loader(), verbose=False
    )
    assert math.isnan(val["val/loss"])
