"""How fast tinytf learns, beside the recipe that every reader knows: nanoGPT's for a CPU (recipe.py).

Its figures are for tiny Shakespeare, by characters, the last 10 % for validation: 1.88 at the end of that recipe, and
1.4697 of the larger one for a GPU. Give that text with ``--corpus``; on another one only the ratios mean something.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks import recipe
from tests.benchmarks.fitting import fit, training_seconds

HERE = Path(__file__).parent
BASE = Path("configs/base.yaml")


def ours(path: Path, corpus: str, **settings: Any) -> tuple[float, float]:
    """(validation loss, training seconds) of `tinytf fit` with a config."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
    rows = fit(f"--config={path}", **{"data.corpus": corpus, "trainer.enable_progress_bar": "false", **settings})
    (*_, loss) = (row["val/loss"] for row in rows if "val/loss" in row)
    (*_, (_, seconds)) = training_seconds(rows, data["batch_size"] * data["seq_len"])
    return loss, seconds


def steps_within(path: Path, corpus: str, seconds: float) -> int:
    """Steps of a config that a tenth less than these seconds hold, by the speed of a short run."""
    _, taken = ours(path, corpus, **short(20))
    return int(0.9 * seconds * 20 / taken)


def short(steps: int) -> dict[str, Any]:
    return {"trainer.max_steps": steps, "trainer.val_check_interval": steps, "trainer.log_every_n_steps": 5,
            "model.compile": "true", "tracking.samples.every_n_validations": 0}  # fmt: skip


def row(name: str, loss: float, seconds: float) -> None:
    print(f"{name:<52}{loss:>9.4f}{seconds:>12.1f}", flush=True)


def run(args: argparse.Namespace) -> dict[str, Any]:
    corpus = args.corpus
    print(f"text: {corpus}")
    print(f"{'':<52}{'val loss':>9}{'training s':>12}")
    pairs = [(recipe.train(corpus)[-1], ours(HERE / "fast.yaml", corpus)) for _ in range(2)]
    (their_loss, their_seconds), (fast_loss, fast_seconds) = (
        (side[0][0], statistics.median(seconds for _, seconds in side)) for side in zip(*pairs, strict=True)
    )
    ratio = statistics.median(fast / slow for (_, slow), (_, fast) in pairs)
    row("the recipe in plain PyTorch, 0.8M parameters", their_loss, their_seconds)
    row(f"tinytf fit, fast.yaml, 0.7M: {ratio:.3f} of the time", fast_loss, fast_seconds)
    config_loss, config_seconds = ours(HERE / "recipe.yaml", corpus)
    row("tinytf fit, recipe.yaml: the recipe in our layers", config_loss, config_seconds)
    steps = steps_within(BASE, corpus, their_seconds)
    same_loss, same_seconds = ours(BASE, corpus, **{**short(steps), "trainer.log_every_n_steps": 10})
    row(f"tinytf fit, base.yaml, {steps} steps: the same time", same_loss, same_seconds)
    return {
        "corpus": Path(corpus).name,
        "recipe": {"val_loss": their_loss, "training_seconds": their_seconds},
        "recipe_in_our_layers": {"val_loss": config_loss, "training_seconds": config_seconds},
        "fast": {"val_loss": fast_loss, "training_seconds": fast_seconds, "ratio": ratio},
        "same_time": {"val_loss": same_loss, "training_seconds": same_seconds, "steps": steps},
    }


def run_base(args: argparse.Namespace) -> dict[str, Any]:
    """base.yaml from the command to its end, as a user runs it, but for the text."""
    began = time.perf_counter()
    loss, seconds = ours(BASE, args.corpus)
    whole = time.perf_counter() - began
    print(f"text: {args.corpus}; val loss {loss:.4f}, {seconds:.0f} s of training, {whole:.0f} s in all", flush=True)
    return {"corpus": Path(args.corpus).name, "val_loss": loss, "training_seconds": seconds, "whole_seconds": whole}
