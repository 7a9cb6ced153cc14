"""model.activation_checkpointing: the same run, to the last bit, with fewer activations kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.stress.campaign import arguments, prepare
from tinytf.cli.main import main


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, on: bool) -> tuple[Path, int]:
    """The run's folder, and the bytes that its first forward pass kept for the backward one."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    prepare(folder)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        settings = {"model.activation_checkpointing": on, "model.dropout": 0.1, "trainer.max_steps": 4}
        assert main(arguments(settings)) == 0
    return folder / "checkpoints/killed/version_0", sum(kept)


def test_it_changes_memory_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, kept_plain = run(tmp_path / "plain", monkeypatch, on=False)
    saving, kept_saving = run(tmp_path / "saving", monkeypatch, on=True)
    ends = [torch.load(end / "last.ckpt", weights_only=True)["state_dict"] for end in (plain, saving)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert kept_saving < 0.7 * kept_plain
