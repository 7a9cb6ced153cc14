"""How fast one GPU trains and generates, beside plain PyTorch on the same machine."""

from __future__ import annotations

import collections
import statistics
import time
import traceback
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch.utils.checkpoint import checkpoint

from tests.benchmarks import recipe
from tests.benchmarks.decoding import NEW, tokens_per_second
from tests.benchmarks.fitting import fit
from tests.benchmarks.throughput import Shape, bare, fitted, tokenizer
from tests.gpu.place import Place
from tinytf.generation.decoding import TransformerEngine
from tinytf.model import Transformer, TransformerConfig
from tinytf.run.loggers.base import unix_time
from tinytf.training import loss
from tinytf.training.attention import aligned_linear

GPT2 = Shape(12, 768, 12, seq_len=1024, batch_size=64, steps=10, vocab_size=50257)
SMALL = Shape(1, 32, 2, seq_len=32, batch_size=4, steps=2, vocab_size=300)
LOSS = 1.4697
"""What nanoGPT's README reports of its recipe for a GPU."""


def matmul(place: Place) -> dict[str, Any]:
    """FLOP/s of a large product of random bfloat16 matrices: the ceiling that MFU is a share of."""
    size, rounds = (256, 3) if place.small else (8192, 20)
    a, b = (torch.randn(size, size, device=place.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(rounds):
        wait(place)
        began = time.perf_counter()
        a @ b
        wait(place)
        seconds.append(time.perf_counter() - began)
    return {"flops": 2 * size**3 / statistics.median(seconds)}


def wait(place: Place) -> None:
    if place.device == "cuda":
        torch.cuda.synchronize()


def throughput(side: str, place: Place) -> dict[str, Any]:
    """Tokens a second of one side at GPT-2's shape, at the largest batch that fits, and the peak of its memory."""
    shape = SMALL if place.small else GPT2
    while True:
        with tokenizer(shape.vocab_size) as words:
            try:
                speed = SIDES[side](shape, words, place)
                break
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        shape = replace(shape, batch_size=shape.batch_size // 2)
        assert shape.batch_size, "not one window fits"
    config = TransformerConfig(shape.vocab_size or 0, shape.d_model, shape.n_heads, shape.n_layers)
    memory = torch.cuda.max_memory_allocated() / 2**30 if place.device == "cuda" else 0.0
    flops = speed * config.flops_per_token(shape.seq_len)
    return {"tokens_per_second": speed, "batch": shape.batch_size, "memory_gb": memory, "flops": flops}


def our_fit(compiled: str, shape: Shape, words: str, place: Place) -> float:
    return fitted(shape, words, **{"trainer.accelerator": place.device, "model.compile": compiled})


SIDES: dict[str, Any] = {
    "bare": lambda shape, words, place: bare(shape, words, place.device),
    "bare, compiled blocks": lambda shape, words, place: bare(shape, words, place.device, "blocks"),
    "bare, compiled whole": lambda shape, words, place: bare(shape, words, place.device, "whole"),
    "tinytf fit": partial(our_fit, "false"),
    "tinytf fit, compiled blocks": partial(our_fit, "true"),
}


def kernels(place: Place) -> dict[str, Any]:
    """Milliseconds of the twelve kernels that take most of a step of `bare`."""
    with tokenizer(GPT2.vocab_size) as words, torch.profiler.profile() as profiler:
        bare(replace(SMALL if place.small else GPT2, steps=1), words, place.device)
    times: collections.Counter[str] = collections.Counter()
    for event in profiler.key_averages():
        times[f"{event.key[:70]} x{event.count // 2}"] += event.self_device_time_total / 2e3  # Two steps.
    return {name: round(time, 2) for name, time in times.most_common(24)}


def unembedding(place: Place) -> dict[str, Any]:
    """Milliseconds of the loss, forward and backward, by how logits are made, and by how many at once."""
    tokens, vocab, width = (64, 300, 32) if place.small else (65536, 50257, 768)
    hidden = torch.randn(tokens, width, device=place.device, requires_grad=True)
    model = Transformer(TransformerConfig(vocab, width, 1, 1)).to(place.device)
    targets = torch.randint(vocab, (tokens,), device=place.device)
    found = {}
    for project in (F.linear, aligned_linear):
        model.project = project
        for power in (25, 28, 30):
            rows, seconds = max(1, 2**power // vocab), []
            for _ in range(4):
                wait(place)
                began = time.perf_counter()
                with torch.autocast(place.device, torch.bfloat16, cache_enabled=False):
                    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
                    chunks = [checkpoint(loss._losses, model, h, t, use_reentrant=False) for h, t in parts]
                torch.cat(chunks).mean().backward()
                wait(place)
                seconds.append(time.perf_counter() - began)
            found[f"{project.__name__}, 2^{power} at once"] = 1e3 * min(seconds)
    return found


class CountWaits(Callback):
    """Counts where the host waits for the GPU, from the tenth step on, by torch's own warnings."""

    places: ClassVar[collections.Counter[str]] = collections.Counter()
    steps = 0

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step >= 10:
            torch.cuda.set_sync_debug_mode("warn")
            type(self).steps += 1

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    @classmethod
    def note(cls, message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            frames = [f for f in traceback.extract_stack() if "/warnings.py" not in f.filename and f.name != "note"]
            named = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-4:]]
            cls.places[" > ".join(named)] += 1


def waits(place: Place) -> dict[str, Any]:
    """How often a step without a logging row makes the host wait for the GPU, and where."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = CountWaits.note  # type: ignore[assignment]
        fit(**{
            "trainer.callbacks": "tests.gpu.speed.CountWaits", "trainer.accelerator": place.device,
            "trainer.max_steps": 60, "trainer.log_every_n_steps": 100, "trainer.val_check_interval": 60,
            "trainer.limit_val_batches": 1, "trainer.enable_progress_bar": "false", "model.d_model": 64,
            "model.n_heads": 2, "data.corpus": "python-docs", "data.batch_size": 4,
            "tracking.samples.every_n_validations": 0,
        })  # fmt: skip
    return {"steps": CountWaits.steps, "waits": sum(CountWaits.places.values()), "places": dict(CountWaits.places)}


def learning_ours(place: Place, *flags: str) -> dict[str, Any]:
    """Seconds from the command to the recipe's loss, and the best loss, on tiny Shakespeare."""
    config = f"--config={Path(__file__).parent / 'shakespeare.yaml'}"
    on = (f"--trainer.accelerator={place.device}", f"--data.corpus={place.corpus}", *flags)
    began = time.time()
    _, seconds = place.tinytf("fit", config, *on, *(SHORT if place.small else ()))
    rows = [row for row in place.rows("shakespeare") if "val/loss" in row]
    at = [unix_time(row) - began for row in rows]
    return {"command_seconds": seconds} | reached([(row["val/loss"], s) for row, s in zip(rows, at, strict=True)])


SHORT = (
    "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=2", "--model.d_model=48",
)  # fmt: skip
LARGER = (
    "--data.batch_size=32", "--trainer.max_steps=500", "--trainer.val_check_interval=25",
    "--checkpoint.every_n_steps=500",
)  # fmt: skip


def learning_recipe(place: Place) -> dict[str, Any]:
    """The same of nanoGPT's recipe in plain PyTorch, compiled; its validation and start are not counted."""
    small = replace(recipe.FOR_GPU, layers=1, width=48, steps=4, validate_every=2, context=32, batch=4)
    return reached(recipe.train(place.corpus, replace(small if place.small else recipe.FOR_GPU, device=place.device)))


def reached(validations: list[tuple[float, float]]) -> dict[str, Any]:
    loss, seconds = min(validations)
    goal = next((at for value, at in validations if value <= LOSS), None)
    return {f"seconds to {LOSS}": goal, "best": loss, "best_seconds": seconds, "validations": validations}


def decoding(place: Place) -> dict[str, Any]:
    """Tokens a second of `tinytf generate`'s engine."""
    sizes = {"3M": TransformerConfig(66, 256, 4, 4, max_seq_len=256)}
    if not place.small:
        sizes["124M"] = TransformerConfig(50257, 768, 12, 12, max_seq_len=1024)
    found = {}
    for name, config in sizes.items():
        engine = TransformerEngine(Transformer(config).to(place.device))
        for samples in (1, 16):
            tokens_per_second(engine, samples)
            found[f"{name}, {samples} at once"] = tokens_per_second(engine, samples)
    return found | {"new": NEW}


SPEEDS = {
    "matmul": matmul,
    **{f"throughput, {side}": partial(throughput, side) for side in SIDES},
    "kernels": kernels,
    "unembedding": unembedding,
    "waits": waits,
    "learning, tinytf fit": learning_ours,
    "learning, tinytf fit, larger batch": lambda place: learning_ours(place, *LARGER),
    "learning, the recipe": learning_recipe,
    "decoding": decoding,
}

DRY = ("throughput, tinytf fit", "learning, tinytf fit", "learning, the recipe")
