"""The kill campaign: `python -m tests.stress.campaign N` kills N runs three times each and compares how they end.

`make stress N=100` runs it. A kill strikes at a random one of the instants between the parts of a step, or, in every
third run, at a random time. ``--every_instant "coinciding"`` kills one run of that case at each single instant in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from tests.stress.killing import Instants, attempt
from tinytf.data.config import CorpusConfig
from tinytf.run.journal import NONDETERMINISTIC_METRICS

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
    "plain": {"trainer.val_check_interval": 5},  # So that the last validation is not one of the interval's.
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
    "workers, accumulating, bf16": {
        "data.num_workers": 2,
        "trainer.accumulate_grad_batches": 2,
        "trainer.precision": "bf16-mixed",
        "trainer.val_check_interval": 20,
    },
    "adamw": {"model.optimizer": "torch.optim.AdamW", "model.optimizer.lr": 0.001, "model.schedule": "Constant"},
    "sanity, limited validation": {"trainer.num_sanity_val_steps": 2, "trainer.limit_val_batches": 2},
    "compiled": {"model.compile": "true"},
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
    # A process that has used a GPU cannot fork one that does.
    final = torch.load(run / "last.ckpt", map_location="cpu", weights_only=True)
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
            {key: value for key, value in row.items() if key != "time" and key not in NONDETERMINISTIC_METRICS}
            for row in rows
            if row["event"] == "metrics"
        ],
        files=sorted(path.name for path in run.glob("*.ckpt")),
    )


@dataclass
class Unbroken:
    """The run that is never killed.

    Args:
        end: how it ended.
        instants: those that it passed through.
        seconds: what it took.
    """

    end: End
    instants: int
    seconds: float


def unbroken(case: dict[str, Any], folder: Path) -> Unbroken:
    prepare(folder)
    # The later runs of this text find its tokens: the instants of storing them are not counted.
    keys = [f"data.{field.name}" for field in fields(CorpusConfig)]
    text = [f"--{key}={value}" for key, value in {**BASE, **case}.items() if key in keys]
    code, _ = attempt(["prepare", *text], folder)
    assert code == 0, (folder / "attempts.log").read_text()
    begun = time.monotonic()
    instants = run(case, folder, Instants())
    return Unbroken(end_of(folder), instants, time.monotonic() - begun)


def run(case: dict[str, Any], folder: Path, instants: Instants | None = None) -> int:
    """Run to the end; the instants passed through."""
    code, passed = attempt(arguments(case), folder, instants)
    if code:
        raise AssertionError(f"exit {code}:\n{(folder / 'attempts.log').read_text()[-3000:]}")
    return passed


Attempt = Callable[[list[str], Path], tuple[int, int]]


def killed(case: dict[str, Any], folder: Path, fatal_attempts: list[Attempt]) -> tuple[End, int]:
    """The same run, killed in each of these attempts that it does not end before, and how many struck."""
    prepare(folder)
    struck = 0
    for fatal in fatal_attempts:
        code, _ = fatal(arguments(case), folder)
        struck += code == -9
        if code not in (0, -9):
            raise AssertionError(f"exit {code}:\n{(folder / 'attempts.log').read_text()[-3000:]}")
    run(case, folder)
    keep_last_run(folder)
    return end_of(folder), struck


def at_instant(number: int) -> Attempt:
    return lambda argv, folder: attempt(argv, folder, Instants(number))


def after_seconds(seconds: float) -> Attempt:
    return lambda argv, folder: attempt(argv, folder, after=seconds)


def random_kills(reference: Unbroken, rng: random.Random, by_time: bool) -> list[Attempt]:
    if by_time:
        return [after_seconds(rng.uniform(0.1, 1.0) * reference.seconds) for _ in range(KILLS)]
    return [at_instant(rng.randint(1, reference.instants * 2 // 3)) for _ in range(KILLS)]


def keep_last_run(folder: Path) -> None:
    """Drop the folders of runs that were killed before their first checkpoint: each began afresh in a new one."""
    runs = sorted((folder / "checkpoints" / "killed").iterdir(), key=lambda run: int(run.name.split("_")[1]))
    for run in runs[:-1]:
        assert not list(run.glob("step-*.ckpt")), f"{run} has checkpoints, and was not gone on with"
        shutil.rmtree(run)


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for all runs, and caches of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TINYTF_CACHE"] = f"{scratch}/cache"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{scratch}/inductor"
        yield Path(scratch)


def random_campaign(runs: int, seed: int) -> Counts:
    rng, counts = random.Random(seed), Counts()
    with workplace() as scratch:
        references = {name: unbroken(case, scratch / f"unbroken {name}") for name, case in CASES.items()}
        for number in range(runs):
            name = list(CASES)[number % len(CASES)]
            kills = random_kills(references[name], rng, by_time=number % 3 == 2)
            compare(counts, f"{number} ({name})", references[name], CASES[name], scratch / "killed", kills)
    return counts


def every_instant(name: str) -> Counts:
    """Kill at each instant of an unbroken run, once, and go on."""
    counts = Counts()
    with workplace() as scratch:
        reference = unbroken(CASES[name], scratch / "unbroken")
        for number in range(1, reference.instants + 1):
            compare(counts, f"instant {number}", reference, CASES[name], scratch / "killed", [at_instant(number)])
    return counts


def compare(
    counts: Counts, label: str, reference: Unbroken, case: dict[str, Any], folder: Path, kills: list[Attempt]
) -> None:
    end, struck = killed(case, folder, kills)
    counts.runs += 1
    counts.kills += struck
    if difference := reference.end.differs(end):
        counts.differing.append(f"{label}: {', '.join(difference)}")
    shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.campaign", description=__doc__)
    parser.add_argument("runs", nargs="?", type=int, default=100, help="how many runs to kill, three times each")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of instants")
    parser.add_argument("--every_instant", choices=CASES, metavar="CASE", help="one kill at each instant of this case")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    counts = every_instant(given.every_instant) if given.every_instant else random_campaign(given.runs, given.seed)
    print(counts)
    return int(bool(counts.differing))


if __name__ == "__main__":
    sys.exit(main())
