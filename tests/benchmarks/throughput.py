"""What `tinytf fit` with everything on costs beside a bare PyTorch loop over the same module, data and optimizer.

Each side runs in a process of its own, because what one leaves of freed memory the next would find. The bare loop
runs twice: as PyTorch has it, and with its memory kept as `tinytf fit` keeps it, which is what the ratio is to.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.benchmarks.fitting import fit
from tinytf.cli.main import quiet_libraries
from tinytf.data.datamodule import TextDataModule
from tinytf.model import Transformer, TransformerConfig
from tinytf.training import MuonAdamW
from tinytf.training.attention import choose_attention, choose_unembedding
from tinytf.training.hardware import fastest_precision, tune_glibc_malloc
from tinytf.training.loss import mean_loss
from tinytf.training.optim.groups import parameter_groups


@dataclass(frozen=True)
class Shape:
    """A model, its micro-batch, and steps that take some seconds: as many to warm up as are measured."""

    n_layers: int
    d_model: int
    n_heads: int
    seq_len: int
    batch_size: int
    steps: int
    vocab_size: int | None = None

    @property
    def name(self) -> str:
        vocabulary = f", {self.vocab_size} tokens" if self.vocab_size else ""
        return f"{self.n_layers} layers, {self.d_model} wide, context {self.seq_len}{vocabulary}"


SHAPES = [
    Shape(4, 128, 2, 128, 8, steps=100),
    Shape(6, 384, 6, 256, 8, steps=20),
    Shape(12, 512, 8, 256, 8, steps=10),
    Shape(12, 768, 12, 256, 4, steps=10, vocab_size=50257),
]


@contextmanager
def tokenizer(vocab_size: int | None) -> Iterator[str]:
    """The setting data.tokenizer: char, or the file of a byte-level vocabulary filled up to a size."""
    if vocab_size is None:
        yield "char"
        return
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"<{i}>" for i in range(len(alphabet), vocab_size))]
    filled = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    filled.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    filled.decoder = decoders.ByteLevel()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        filled.save(str(path))
        yield str(path)


def bare(shape: Shape, words: str, device: str = "cpu", compiled: str = "") -> float:
    """Tokens a second of the loop that nobody could leave anything out of.

    Args:
        compiled: of torch.compile: nothing, the ``blocks``, or the ``whole`` from tokens to loss.
    """
    data = TextDataModule(corpus="python-docs", tokenizer=words, batch_size=shape.batch_size, seq_len=shape.seq_len)
    data.prepare_data()
    data.setup()
    config = TransformerConfig(data.vocab_size, shape.d_model, shape.n_heads, shape.n_layers, max_seq_len=shape.seq_len)
    model = Transformer(config).to(device)
    precision = fastest_precision(device)
    choose_attention(model, torch.device(device), precision)
    choose_unembedding(model, torch.device(device))
    if compiled == "blocks":
        for block in model.layers:
            block.compile()
    loss_of = torch.compile(mean_loss) if compiled == "whole" else mean_loss
    optimizer = MuonAdamW(parameter_groups(model))
    began = 0.0
    for step, (tokens, targets) in enumerate(data.train_dataloader()):
        if step in (shape.steps, 2 * shape.steps) and device == "cuda":
            torch.cuda.synchronize()
        if step == shape.steps:
            began = time.perf_counter()
        if step == 2 * shape.steps:
            break
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False):
            loss = loss_of(model, tokens.to(device), targets.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return shape.steps * shape.batch_size * shape.seq_len / (time.perf_counter() - began)


def bare_kept(shape: Shape, words: str) -> float:
    """The same, with freed memory kept."""
    tune_glibc_malloc()
    return bare(shape, words)


def fitted(shape: Shape, words: str, **settings: Any) -> float:
    """Tokens a second of `tinytf fit`, logging and tracking on, validation and saving aside."""
    rows = fit(**{
        "trainer.max_steps": 2 * shape.steps, "trainer.val_check_interval": 10 * shape.steps,
        "trainer.log_every_n_steps": min(shape.steps, 10), "model.compile": "false", "model.n_layers": shape.n_layers,
        "model.d_model": shape.d_model, "model.n_heads": shape.n_heads, "model.max_seq_len": shape.seq_len,
        "data.corpus": "python-docs", "data.tokenizer": words, "data.seq_len": shape.seq_len,
        "data.batch_size": shape.batch_size, "trainer.enable_progress_bar": "false",
        "tracking.samples.every_n_validations": 0, "trainer.limit_val_batches": 1, **settings,
    })  # fmt: skip
    speeds = [row["train/tokens_per_sec"] for row in rows if "train/tokens_per_sec" in row]
    return statistics.harmonic_mean(speeds[len(speeds) // 2 :])


SIDES: dict[str, Callable[[Shape, str], float]] = {"bare": bare, "bare_kept": bare_kept, "fit": fitted}


def measured(side: str, shape: Shape, words: str, threads: int) -> float:
    quiet_libraries()
    torch.set_num_threads(threads)
    return SIDES[side](shape, words)


def alone(side: str, shape: Shape, words: str) -> float:
    """One side, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, side, shape, words, torch.get_num_threads()).result()


def run(args: argparse.Namespace) -> dict[str, Any]:
    found = {}
    print(f"{'tokens/s':<46}{'bare loop':>10}{'memory kept':>13}{'tinytf fit':>12}{'ratio':>7}")
    for shape in SHAPES:
        with tokenizer(shape.vocab_size) as words:
            rounds = [{side: alone(side, shape, words) for side in SIDES} for _ in range(min(args.rounds, 3))]
        speeds = {side: statistics.median(one[side] for one in rounds) for side in SIDES}
        ratio = statistics.median(one["fit"] / one["bare_kept"] for one in rounds)
        print(
            f"{shape.name:<46}{speeds['bare']:>10,.0f}{speeds['bare_kept']:>13,.0f}{speeds['fit']:>12,.0f}"
            f"{ratio:>7.2f}",
            flush=True,
        )
        found[shape.name] = {**speeds, "ratio": ratio}
    return {"tokens_per_second": found}
