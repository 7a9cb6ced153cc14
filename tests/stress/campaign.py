"""The kill campaign: `python -m tests.stress.campaign N` kills N runs three times each and compares how they end.

`make stress N=100` runs it; the tests run a few trials of each case.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.stress.killing import Instants, attempt
from tinytf.tracking.metrics_file import MEASURES_MACHINE

KILLS = 3

BASE = {
    "name": "killed",
    "trainer.max_steps": 12,
    "trainer.val_check_interval": 4,
    "trainer.log_every_n_steps": 1,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "model.d_model": 16,
    "model.n_heads": 2,
    "model.n_layers": 1,
    "model.max_seq_len": 16,
    "model.dropout": 0.1,
    "model.schedule.warmup_steps": 3,
    "data.corpus": "text.txt",
    "data.batch_size": 4,
    "data.seq_len": 16,
    "checkpoint.every_n_steps": 3,
    "checkpoint.save_top_k": 2,
    "tracking.samples.every_n_validations": 0,
}
"""Small, with dropout. Twelve steps of four windows are more than an epoch of the text."""

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulating": {"trainer.accumulate_grad_batches": 3},
    "coinciding": {"checkpoint.every_n_steps": 2, "trainer.val_check_interval": 2},
    "accumulating, coinciding": {
        "trainer.accumulate_grad_batches": 2,
        "checkpoint.every_n_steps": 4,
        "trainer.val_check_interval": 4,
    },
    "every step": {"checkpoint.every_n_steps": 1, "trainer.val_check_interval": 1, "checkpoint.save_top_k": 1},
    "workers": {"data.num_workers": 2},
    "bf16": {"trainer.precision": "bf16-mixed"},
    "adamw": {"model.optimizer": "torch.optim.AdamW", "model.optimizer.lr": 0.001, "model.schedule": "Constant"},
}


@dataclass
class End:
    """All of how a run ended that an unbroken one must share."""

    weights: dict[str, torch.Tensor]
    optimizer: list[torch.Tensor]
    best: dict[str, float]
    rows: list[dict[str, Any]]
    files: list[str]

    def differs(self, other: End) -> list[str]:
        found = []
        if self.weights.keys() != other.weights.keys() or any(
            not torch.equal(value, other.weights[key]) for key, value in self.weights.items()
        ):
            found.append("weights")
        if len(self.optimizer) != len(other.optimizer) or any(
            not torch.equal(a, b) for a, b in zip(self.optimizer, other.optimizer, strict=True)
        ):
            found.append("optimizer")
        for name in ("best", "rows", "files"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                found.append(
                    f"{name} {[x for x in theirs if x not in mine]} for {[x for x in mine if x not in theirs]}"
                )
        return found


@dataclass
class Counts:
    """What a campaign prints."""

    runs: int = 0
    kills: int = 0
    differing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        exact = self.runs - len(self.differing)
        return "\n".join((f"{self.runs} runs, {self.kills} kills, {exact} exact", *self.differing))


def arguments(case: dict[str, Any]) -> list[str]:
    settings = {**BASE, **case}
    # A class must come before its arguments.
    ordered = sorted(settings, key=lambda key: (key.count("."), key))
    return ["fit", *(f"--{key}={settings[key]}" for key in ordered), "--ckpt_path=last"]


def prepare(folder: Path) -> None:
    """A text of a few kilobytes, with enough structure to learn."""
    rng = random.Random(1)
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler", "mind", "suffer"]
    lines = [" ".join(rng.choices(words, k=6)) for _ in range(80)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")


def end_of(folder: Path) -> End:
    """How the one run in a folder ended."""
    (run,) = (folder / "checkpoints" / "killed").iterdir()
    final = torch.load(run / "last.ckpt", weights_only=True)
    (best,) = (state for key, state in final["callbacks"].items() if key.startswith("BestCheckpoints"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return End(
        weights=final["state_dict"],
        optimizer=[
            value
            for state in final["optimizer_states"][0]["state"].values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ],
        best={Path(path).name: float(score) for path, score in best["best_k_models"].items()},
        rows=[
            {key: value for key, value in row.items() if key != "time" and key not in MEASURES_MACHINE}
            for row in rows
            if row["event"] == "metrics"
        ],
        files=sorted(path.name for path in run.glob("*.ckpt")),
    )


def unbroken(case: dict[str, Any], folder: Path) -> tuple[End, int]:
    """The run that is never killed, and the instants it passes through."""
    prepare(folder)
    code, instants = attempt(arguments(case), folder, Instants())
    if code:
        raise AssertionError(f"exit {code}:\n{(folder / 'attempts.log').read_text()[-3000:]}")
    return end_of(folder), instants


def killed(case: dict[str, Any], folder: Path, instants: int, rng: random.Random) -> tuple[End, int]:
    """The same run, killed a few times, and the kills that struck."""
    prepare(folder)
    struck = 0
    for _ in range(KILLS):
        code, _ = attempt(arguments(case), folder, Instants(fatal=rng.randint(1, instants * 2 // 3)))
        struck += code == -9
        if code not in (0, -9):
            raise AssertionError(f"exit {code}:\n{(folder / 'attempts.log').read_text()[-3000:]}")
    code, _ = attempt(arguments(case), folder)
    if code:
        raise AssertionError(f"exit {code}:\n{(folder / 'attempts.log').read_text()[-3000:]}")
    keep_last_run(folder)
    return end_of(folder), struck


def keep_last_run(folder: Path) -> None:
    """Drop the folders of runs that were killed before their first checkpoint: each began afresh in a new one."""
    runs = sorted((folder / "checkpoints" / "killed").iterdir(), key=lambda run: int(run.name.split("_")[1]))
    for run in runs[:-1]:
        assert not list(run.glob("step=*.ckpt")), f"{run} has checkpoints, and was not gone on with"
        shutil.rmtree(run)


def main(runs: int, seed: int = 0) -> Counts:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rng, counts = random.Random(seed), Counts()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TINYTF_CACHE"] = f"{scratch}/cache"
        references = {name: unbroken(case, Path(scratch) / f"unbroken {name}") for name, case in CASES.items()}
        for number in range(runs):
            name = list(CASES)[number % len(CASES)]
            reference, instants = references[name]
            folder = Path(scratch) / f"killed {number}"
            end, struck = killed(CASES[name], folder, instants, rng)
            counts.runs += 1
            counts.kills += struck
            if difference := reference.differs(end):
                counts.differing.append(f"{number} ({name}): {', '.join(difference)}")
            shutil.rmtree(folder)
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
    print(result)
    sys.exit(bool(result.differing))
