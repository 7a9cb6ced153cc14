"""Throughput: what it counts and what it leaves out, on a clock that the test moves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.run.toy_run import BATCH, SEQ, fit, records
from tinytf.model import Transformer, TransformerConfig
from tinytf.run.callbacks import throughput
from tinytf.run.callbacks.journal import JournalCallback
from tinytf.run.callbacks.throughput import Throughput
from tinytf.run.journal import NONDETERMINISTIC_METRICS
from tinytf.training import peak_flops as peak


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Bench(JournalCallback):
    """Drives the callback through the hooks that a Trainer would call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, peak_flops: float | None) -> None:
        self.clock = Clock()
        monkeypatch.setattr(throughput, "time", self.clock)
        monkeypatch.setattr(throughput, "peak_flops", lambda device: peak_flops)
        self.config = TransformerConfig(11, 16, 2, 2)
        self.trainer: Any = SimpleNamespace(
            global_step=0, log_every_n_steps=3, is_global_zero=True, world_size=1,
            callbacks=[self],
        )  # fmt: skip
        self.logged: list[dict[str, float]] = []
        self.module: Any = SimpleNamespace(
            device=torch.device("cpu"), model=Transformer(self.config),
        )  # fmt: skip
        self.callback = Throughput()
        self.add = self.logged.append  # type: ignore[assignment, method-assign]
        self.callback.on_train_start(self.trainer, self.module)

    def step(self, wait: float, work: float) -> None:
        self.clock.now += wait
        self.callback.on_train_batch_start(self.trainer, self.module, None, 0)
        self.clock.now += work
        self.trainer.global_step += 1
        batch = (torch.zeros(BATCH, SEQ), torch.zeros(BATCH, SEQ))
        self.callback.on_train_batch_end(self.trainer, self.module, None, batch, 0)


def test_the_first_step_is_left_out_and_waiting_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, 1e9)
    bench.step(wait=5.0, work=60.0)
    bench.step(wait=1.0, work=3.0)
    bench.step(wait=1.0, work=3.0)
    (values,) = bench.logged
    speed = 2 * BATCH * SEQ / 8.0
    assert values["train/tokens_per_sec"] == speed
    assert values["train/data_wait"] == 0.25
    assert values["train/mfu"] == pytest.approx(speed * bench.config.flops_per_token(SEQ) / 1e9)


def test_validation_and_saving_are_left_out_and_logging_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, None)
    for _ in range(3):
        bench.step(wait=0.0, work=1.0)
    bench.clock.now += 0.5  # Writing the row.
    bench.step(wait=0.0, work=1.0)
    bench.callback.on_validation_start(bench.trainer, bench.module)
    bench.clock.now += 100.0
    bench.step(wait=0.0, work=1.0)
    bench.callback.on_save_checkpoint(bench.trainer, bench.module, {})
    bench.clock.now += 100.0
    bench.step(wait=0.0, work=1.0)
    assert bench.logged[1]["train/tokens_per_sec"] == 3 * BATCH * SEQ / 3.5
    assert bench.logged[1]["train/data_wait"] == 0.0


def test_unknown_hardware_logs_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, None)
    for _ in range(3):
        bench.step(wait=0.0, work=1.0)
    assert "train/mfu" not in bench.logged[0]


def test_a_real_run_logs_them_all_under_their_names(tmp_path: Path) -> None:
    fit(tmp_path, [Throughput(), JournalCallback({}, tmp_path)], steps=6)
    rows = [row for row in records(tmp_path, "metrics") if "train/loss" in row]
    named = {"train/tokens_per_sec", "train/mfu", "train/data_wait", "system/memory_gb"}
    assert named < NONDETERMINISTIC_METRICS
    for row in rows:
        assert named < row.keys()
        assert row["train/tokens_per_sec"] > 0
        assert 0 <= row["train/data_wait"] <= 1
        assert 0.05 < row["system/memory_gb"] < 100


def test_flops_of_a_model_counted_by_hand() -> None:
    # Per layer: q, k, v, o 4 d^2; gate, up, down 3 d f; embedding V d; attention scores and values 2 * 2 T d.
    config = TransformerConfig(vocab_size=100, d_model=64, n_heads=2, n_layers=3, d_ff=128)
    matrices = 3 * (4 * 64**2 + 3 * 64 * 128) + 100 * 64
    attention = 3 * 2 * 32 * 64
    counted = 3 * 2 * (matrices + attention)
    assert config.flops_per_token(32) == pytest.approx(counted, rel=0.02)


def test_gpus_are_known_by_whole_words() -> None:
    assert peak.gpu_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert peak.gpu_peak("NVIDIA H100 PCIe") == 756e12
    assert peak.gpu_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak.gpu_peak("Tesla T4") == 65e12
    assert peak.gpu_peak("NVIDIA L40S") == 362e12
    assert peak.gpu_peak("NVIDIA T400") is None
    # As the whitepapers of GA102, Ada and RTX Blackwell state them, in TFLOP/s.
    stated = {"3090": 71, "3080": 59.5, "3070": 40.6, "4090": 165.2, "4080": 97.5, "5090": 209.5, "5080": 112.6,
              "5070 Ti": 87.9, "5070": 61.7}  # fmt: skip
    for name, teraflops in stated.items():
        assert peak.gpu_peak(f"NVIDIA GeForce RTX {name}") == pytest.approx(teraflops * 1e12, rel=0.004)
    for other in ("RTX 4090 Laptop GPU", "RTX 4090 D", "RTX 3050", "RTX 3080 Laptop GPU"):
        assert peak.gpu_peak(f"NVIDIA GeForce {other}") is None
    assert peak.gpu_peak("Some Future GPU") is None
    assert peak.peak_flops(torch.device("meta")) is None


def test_the_cpus_peak_is_the_highest_ever_measured_and_leaves_random_numbers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYTF_CACHE", str(tmp_path))
    monkeypatch.setattr(peak, "SECONDS", 0.01)
    state = torch.get_rng_state()
    first = peak.cpu_peak()
    assert 1e9 < first < 1e14
    assert torch.equal(torch.get_rng_state(), state)
    for measured, expected in ((first / 2, first), (first * 3, first * 3), (first, first * 3)):
        monkeypatch.setattr(peak, "measure_peak_flops", lambda value=measured: value)
        assert peak.cpu_peak() == expected


@pytest.mark.parametrize("content", ["", "[]", "null", '{"a": null}', '{"a": [1]}', "\0"])
def test_a_cache_of_anything_is_measured_over(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYTF_CACHE", str(tmp_path))
    monkeypatch.setattr(peak, "measure_peak_flops", lambda: 5e10)
    (tmp_path / "cpu_peak.json").write_text(content)
    assert peak.cpu_peak() == 5e10


def test_a_peak_that_was_measured_too_low_gives_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    for low, known in ((1.0, False), (1e12, True)):
        bench = Bench(monkeypatch, low)
        for _ in range(3):
            bench.step(wait=0.0, work=1.0)
        assert ("train/mfu" in bench.logged[-1]) is known


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TINYTF_CACHE", str(tmp_path / "file" / "inside"))
    monkeypatch.setattr(peak, "measure_peak_flops", lambda: 5e10)
    assert peak.cpu_peak() == 5e10
