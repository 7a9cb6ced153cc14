"""What is chosen for a machine, and that a container's share of it counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tinytf.training import hardware
from tinytf.training.hardware import COMPILE_PAYS_AFTER, compile_pays, fastest_matmul, onednn_matmul_is_faster
from tinytf.utils import machine
from tinytf.utils.machine import usable_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"quota": "300000\n", "period": "100000\n"}, 3),
        ({"quota": "-1\n", "period": "100000\n"}, 8),
        ({}, 8),
    ],
)
def test_a_container_has_the_cores_of_its_quota(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    places = ((str(tmp_path / "cpu.max"),), (str(tmp_path / "quota"), str(tmp_path / "period")))
    monkeypatch.setattr(machine, "CGROUP_QUOTAS", places)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores() == cores


def test_compiling_is_for_long_runs_where_a_compiler_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.shutil, "which", lambda name: "/usr/bin/" + name)
    assert compile_pays(COMPILE_PAYS_AFTER["cpu"], "cpu")
    assert not compile_pays(COMPILE_PAYS_AFTER["cpu"] / 2, "cpu")
    assert not compile_pays(1e30, "mps")
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert not compile_pays(1e30, "cpu")


def test_a_measurement_leaves_the_matmul_precision_as_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    onednn_matmul_is_faster()
    assert torch.get_float32_matmul_precision() == before


def test_matmul_precision_is_touched_only_where_a_cpu_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "onednn_matmul_is_faster", lambda: True)
    assert fastest_matmul("32-true", "cpu") == "medium"
    assert fastest_matmul("bf16-mixed", "cpu") == "highest"
    assert fastest_matmul("32-true", "cuda") == "highest"
