"""TextDataModule alone and under a Trainer: the same batches after a resume, on the same or other devices."""

from __future__ import annotations

import inspect
import itertools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

from tinytf.cli.main import explain_shortage
from tinytf.data import TextDataModule, datamodule
from tinytf.data.config import CorpusConfig
from tinytf.data.datamodule import _leave_signals_to_the_trainer
from tinytf.data.tokenizer import character_tokenizer
from tinytf.errors import UserError

Batch = tuple[torch.Tensor, torch.Tensor]


def ready(**changes: Any) -> TextDataModule:
    data = TextDataModule(**{"corpus": "python-docs", "batch_size": 4, "seq_len": 32, **changes})
    data.prepare_data()
    data.setup()
    return data


class Recorder(LightningModule):
    """Learns next to nothing and remembers every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []
        self.counted = 0

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append(batch[0])
        return self.weight * 1.0

    def validation_step(self, batch: Batch, index: int) -> None:
        self.counted += int(batch[1].ge(0).sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(root: Path, steps: int, **changes: Any) -> Trainer:
    defaults = {
        "default_root_dir": root,
        "max_steps": steps,
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "check_val_every_n_epoch": None,
        "val_check_interval": 10_000,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return Trainer(**{**defaults, **changes})


def test_without_a_trainer() -> None:
    data = ready()
    tokens, targets = next(iter(data.train_dataloader()))
    assert tokens.shape == targets.shape == (4, 32)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert data.vocab_size == data.tokenizer.get_vocab_size() == data.fingerprint["vocab_size"]
    assert len(data.split("train")) == data.fingerprint["split_tokens"]["train"]
    assert data.state_dict() == {"samples": 0, "batches": 0}


def test_validation_is_the_end_of_the_text_once() -> None:
    data = ready()
    targets = torch.cat([batch[1].flatten() for batch in data.val_dataloader()])
    val = data.split("val")
    assert targets[targets >= 0].tolist() == val[1:].tolist()
    assert len(data.val_dataloader()) == math.ceil((len(val) - 1) / (4 * 32))
    assert [b[0].tolist() for b in data.predict_dataloader()] == [b[0].tolist() for b in data.val_dataloader()]


def test_bytes_per_token_compares_tokenizers() -> None:
    char, bpe = ready(), ready(tokenizer="bpe", vocab_size=400)
    for data in (char, bpe):
        text = data.tokenizer.decode(data.split("val").tolist())
        assert data.bytes_per_token["val"] == pytest.approx(len(text.encode()) / len(data.split("val")))
    assert 1 <= char.bytes_per_token["val"] < 1.1 < bpe.bytes_per_token["val"]


def test_there_is_a_test_split_only_if_one_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"no test split: .*--data\.test_fraction 0\.05 or --data\.test_corpus"):
        ready().test_dataloader()
    assert len(ready(test_fraction=0.1).test_dataloader())


def test_a_tokenizer_from_a_checkpoint_comes_first() -> None:
    first = ready(tokenizer="bpe", vocab_size=300)
    data = TextDataModule(corpus="python-docs", tokenizer="char", batch_size=4, seq_len=32)
    data.use_tokenizer(first.tokenizer.to_str())
    data.prepare_data()
    data.setup()
    assert data.split("val").tolist() == first.split("val").tolist()
    with pytest.raises(UserError, match="of the checkpoint"):
        data.use_tokenizer("{}")


def test_a_tokenizer_from_a_file(tmp_path: Path) -> None:
    first = ready(tokenizer="bpe", vocab_size=300)
    first.tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert ready(tokenizer=str(tmp_path / "tokenizer.json")).split("val").tolist() == first.split("val").tolist()


def test_preparing_twice_reads_the_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready()
    monkeypatch.setattr("tinytf.data.datamodule.prepare", lambda *args: pytest.fail("prepared again"))
    data.prepare_data()
    data.setup()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size is 0, but must be at least 1"),
        ({"seq_len": 0}, r"data\.seq_len is 0"),
        ({"num_workers": -1}, r"data\.num_workers is -1"),
        (
            {"seq_len": 40_000, "val_fraction": 0.05},
            r"the val split has [\d,]+ tokens.*lower data\.seq_len to at most \d+, or raise",
        ),
        ({"seq_len": 600_000}, r"the train split has [\d,]+ tokens, and one window with its targets takes 600,001"),
        ({"tokenizer": "nope"}, r"tokenizer nope: there is no such file; give char, bpe"),
        ({"corpus": "nope"}, r"corpus nope: no such file or folder"),
        ({"val_corpus": "nope"}, r"corpus nope: no such file or folder"),
        ({"tokenizer": "bpe", "vocab_size": 100}, r"data\.vocab_size 100 is too small"),
    ],
)
def test_a_config_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ready(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["num_workers", "prepare_processes"])
def test_more_processes_than_a_machine_holds_are_refused_before_any_starts(key: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{key} is 100000, but must be at most \d+ on a machine with"):
        TextDataModule(**{"corpus": "nope", key: 100_000})


class Unsendable(Dataset[object]):
    def __getitem__(self, k: int) -> object:
        return lambda: k  # Cannot be pickled: fails in the thread that hands batches over, as a full /dev/shm does.


def test_a_loader_process_that_cannot_hand_over_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinytf.data.datamodule.LOADER_TIMEOUT", 2)
    data = TextDataModule(num_workers=1)
    with pytest.raises(RuntimeError, match=r"^DataLoader timed out") as caught:
        next(iter(data._loader(Unsendable(), [0, 1])))  # type: ignore[arg-type]
    assert "--data.num_workers 0" in (explain_shortage(caught.value) or "")


def test_a_loader_process_that_is_killed_is_one_line() -> None:
    data = ready(num_workers=1)
    batches = iter(data.train_dataloader())
    next(batches)

    def kill_and_read() -> None:
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        batches._workers[0].join()  # Here torch's handler of SIGCHLD may raise, else the next read.
        list(batches)

    with pytest.raises(RuntimeError) as caught:
        kill_and_read()
    reason = explain_shortage(caught.value)
    assert reason is not None
    assert "\n" not in reason
    assert "killed by signal" in reason or "exited unexpectedly" in reason


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_one_that_dies_while_it_hands_a_batch_over_is_one_line(error: Exception) -> None:
    batches = iter(ready(num_workers=1).train_dataloader())

    def get(timeout: float) -> None:
        raise error

    batches._data_queue.get = get
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert "a process that reads batches was lost" in str(explain_shortage(caught.value))
    assert explain_shortage(type(error)("of another connection")) is None


def test_a_loader_process_of_a_fork_server_obeys_the_training_process_alone() -> None:
    """Which is not its parent there, and ends stuck workers by SIGTERM."""
    if "forkserver" not in multiprocessing.get_all_start_methods() or not hasattr(signal, "sigwaitinfo"):
        pytest.skip("there is no fork server here, or nothing says who sent a signal")
    loader = DataLoader(
        [0, 1, 2],  # type: ignore[arg-type]
        num_workers=1,
        multiprocessing_context="forkserver",
        worker_init_fn=_leave_signals_to_the_trainer,
        persistent_workers=True,
    )
    batches = iter(loader)
    next(batches)
    worker = batches._workers[0]  # type: ignore[attr-defined]
    subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, 15)"], check=True)
    worker.join(1)
    assert worker.is_alive()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


def test_lightning_sees_one_endless_stream(tmp_path: Path) -> None:
    model, data = Recorder(), ready(batch_size=64, seq_len=512)
    fit = trainer(tmp_path, 40)
    fit.fit(model, datamodule=data)
    batches = list(itertools.islice(ready(batch_size=64, seq_len=512).train_dataloader(), 40))
    assert len(data.split("train")) // 512 < 20 * 64
    assert fit.num_training_batches == math.inf
    assert all(torch.equal(a, b[0]) for a, b in zip(model.seen, batches, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_continues_with_the_next_batch(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "a.ckpt"
    changes = {"accumulate_grad_batches": 2}
    whole = Recorder()
    trainer(tmp_path, 9, **changes).fit(whole, datamodule=ready())
    seen: list[torch.Tensor] = []
    for steps in (2, 5, 9):
        part, fit = Recorder(), trainer(tmp_path, steps, **changes)
        fit.fit(part, datamodule=ready(num_workers=workers), ckpt_path=path if path.exists() else None)
        fit.save_checkpoint(path)
        seen += part.seen
    saved = torch.load(path, weights_only=True)["TextDataModule"]
    assert saved == {"samples": 18 * 4, "batches": 18}
    assert len(seen) == len(whole.seen) == 18
    assert all(torch.equal(a, b) for a, b in zip(seen, whole.seen, strict=True))


def test_a_resume_with_another_batch_size_continues_with_the_right_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    whole = list(itertools.islice(ready(batch_size=1).train_dataloader(), 100))
    for steps, batch_size in ((5, 4), (8, 2), (10, 8)):
        part, fit = Recorder(), trainer(tmp_path, steps)
        fit.fit(part, datamodule=ready(batch_size=batch_size), ckpt_path=path if path.exists() else None)
        fit.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["TextDataModule"] == {"samples": 20 + 6 + 16, "batches": 10}
    assert torch.equal(torch.cat(part.seen), torch.cat([whole[i][0] for i in range(26, 42)]))


def test_validation_under_a_trainer_counts_every_target(tmp_path: Path) -> None:
    model, data = Recorder(), ready()
    trainer(tmp_path, 1).validate(model, datamodule=data, verbose=False)
    assert model.counted == len(data.split("val")) - 1


def test_an_unknown_character_in_the_data_of_a_restored_tokenizer(tmp_path: Path) -> None:
    data = TextDataModule(corpus="python-docs")
    data.use_tokenizer(character_tokenizer("abc", end_of_text=False).to_str())
    with pytest.raises(UserError, match=r"in line \d+ of python-docs"):
        data.prepare_data()


@pytest.mark.parametrize("kind", [TextDataModule, CorpusConfig])
def test_every_key_has_a_help_text(kind: type) -> None:
    names = inspect.signature(kind).parameters
    text = inspect.getdoc(kind) or ""  # Dedented: Python 3.13 does so when it compiles, earlier ones do not.
    assert [name for name in names if f"    {name}: " not in text] == []


def test_what_it_offers_is_what_others_were_promised() -> None:
    data = ready()
    assert isinstance(data.tokenizer, Tokenizer)
    assert {
        "corpus",
        "sha256",
        "bytes",
        "split",
        "split_bytes",
        "split_tokens",
        "tokenizer_sha256",
    } <= data.fingerprint.keys()


def test_a_worker_ignores_the_signals_that_its_system_has(monkeypatch: pytest.MonkeyPatch) -> None:
    ignored: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda number, _: ignored.append(number))
    for module, name in ((signal, "SIGHUP"), (signal, "SIGUSR1"), (signal, "sigwaitinfo"), (os, "setpgrp")):
        monkeypatch.delattr(module, name, raising=False)  # Windows has none of them.
    datamodule._leave_signals_to_the_trainer(0)
    assert ignored == [signal.SIGINT]
