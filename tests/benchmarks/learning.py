"""How fast tinytf learns, beside the recipe that every reader knows: nanoGPT's for a CPU (recipe.yaml).

Its figures are for tiny Shakespeare, by characters, the last 10 % for validation: 1.88 at the end of that recipe, and
1.4697 of the larger one for a GPU. Give that text with ``--corpus``; on another one only the ratios mean something.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.benchmarks.fitting import fit, training_seconds
from tinytf.data.module import TextDataModule
from tinytf.model import Transformer, TransformerConfig
from tinytf.training import Cosine
from tinytf.training.groups import parameter_groups
from tinytf.training.loss import IGNORE, token_losses

HERE = Path(__file__).parent
BASE = Path("configs/base.yaml")


def recipe(corpus: str) -> tuple[float, float]:
    """(validation loss, training seconds) of recipe.yaml in a plain PyTorch loop."""
    config = yaml.safe_load((HERE / "recipe.yaml").read_text(encoding="utf-8"))
    shape, steps = config["model"], config["trainer"]["max_steps"]
    data = TextDataModule(corpus, **config["data"])
    data.prepare_data()
    data.setup()
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(1337)
    names = ("d_model", "n_heads", "n_layers", "d_ff", "max_seq_len")
    model = Transformer(TransformerConfig(data.vocab_size, **{name: shape[name] for name in names}))
    optimizer = torch.optim.AdamW(parameter_groups(model), **shape["optimizer"]["init_args"])
    schedule = Cosine(**shape["schedule"]["init_args"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, steps))
    began = time.perf_counter()
    for _, (tokens, targets) in zip(range(steps), data.train_dataloader(), strict=False):
        token_losses(model, tokens, targets).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config["trainer"]["gradient_clip_val"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    return validation_loss(model, data), seconds


@torch.inference_mode()
def validation_loss(model: Transformer, data: TextDataModule) -> float:
    total, count = 0.0, 0
    for tokens, targets in data.val_dataloader():
        total += token_losses(model, tokens, targets).sum().item()
        count += int((targets != IGNORE).sum())
    return total / count


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


def run(args: argparse.Namespace) -> dict[str, Any]:
    corpus = args.corpus
    print(f"text: {corpus}")
    print(f"{'':<52}{'val loss':>9}{'training s':>12}")
    pairs = [(recipe(corpus), ours(HERE / "fast.yaml", corpus)) for _ in range(2)]
    (their_loss, their_seconds), (fast_loss, fast_seconds) = (
        (side[0][0], statistics.median(seconds for _, seconds in side)) for side in zip(*pairs, strict=True)
    )
    ratio = statistics.median(fast / slow for (_, slow), (_, fast) in pairs)
    print(f"{'the recipe, plain PyTorch, 0.8M parameters':<52}{their_loss:>9.4f}{their_seconds:>12.1f}")
    print(f"{'tinytf fit, 0.7M parameters: ' + f'{ratio:.3f} of the time':<52}{fast_loss:>9.4f}{fast_seconds:>12.1f}")
    steps = steps_within(BASE, corpus, their_seconds)
    same_loss, same_seconds = ours(BASE, corpus, **{**short(steps), "trainer.log_every_n_steps": 10})
    print(f"{f'tinytf fit, base.yaml, {steps} steps: the same time':<52}{same_loss:>9.4f}{same_seconds:>12.1f}")
    began = time.perf_counter()
    base_loss, base_seconds = ours(BASE, corpus)
    whole = time.perf_counter() - began
    print(f"{f'tinytf fit, base.yaml as it is: {whole:.0f} s in all':<52}{base_loss:>9.4f}{base_seconds:>12.1f}")
    return {
        "corpus": Path(corpus).name,
        "recipe": {"val_loss": their_loss, "training_seconds": their_seconds},
        "fast": {"val_loss": fast_loss, "training_seconds": fast_seconds, "ratio": ratio},
        "same_time": {"val_loss": same_loss, "training_seconds": same_seconds, "steps": steps},
        "base": {"val_loss": base_loss, "training_seconds": base_seconds, "whole_seconds": whole},
    }
