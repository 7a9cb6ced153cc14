"""What `tinytf fit` with everything on costs beside a bare PyTorch loop over the same module, data and optimizer."""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from tinytf.cli import main
from tinytf.data.module import TextDataModule
from tinytf.model import Transformer, TransformerConfig
from tinytf.tracking.provenance import cpu_name
from tinytf.training import MuonAdamW
from tinytf.training.groups import parameter_groups
from tinytf.training.loss import token_losses

STEPS, WARM, ROUNDS = 40, 10, 3
SHAPES = {
    "4 layers, 128 wide, context 128": (4, 128, 2, 128, 8),
    "4 layers, 256 wide, context 256": (4, 256, 4, 256, 8),
}
"""n_layers, d_model, n_heads, seq_len, batch_size."""

RESULTS = Path(__file__).parent / "results"


def bare(n_layers: int, d_model: int, n_heads: int, seq_len: int, batch_size: int) -> float:
    """Tokens a second of the loop that nobody could leave anything out of."""
    data = TextDataModule(corpus="python-docs", batch_size=batch_size, seq_len=seq_len)
    data.prepare_data()
    data.setup()
    model = Transformer(TransformerConfig(data.vocab_size, d_model, n_heads, n_layers, max_seq_len=seq_len))
    optimizer = MuonAdamW(parameter_groups(model))
    began = 0.0
    for step, (tokens, targets) in enumerate(data.train_dataloader()):
        if step == WARM:
            began = time.perf_counter()
        if step == STEPS:
            break
        token_losses(model, tokens, targets).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (STEPS - WARM) * batch_size * seq_len / (time.perf_counter() - began)


def fitted(n_layers: int, d_model: int, n_heads: int, seq_len: int, batch_size: int) -> float:
    """Tokens a second of `tinytf fit`, logging and tracking on, validation and saving aside."""
    settings = {
        "trainer.max_steps": STEPS, "trainer.val_check_interval": 10 * STEPS, "trainer.log_every_n_steps": WARM,
        "trainer.precision": "32-true", "model.compile": "false", "model.n_layers": n_layers,
        "model.d_model": d_model, "model.n_heads": n_heads, "model.max_seq_len": seq_len,
        "data.corpus": "python-docs", "data.seq_len": seq_len, "data.batch_size": batch_size,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        code = main(["fit", f"--checkpoint.dir={folder}", *(f"--{key}={value}" for key, value in settings.items())])
        assert code == 0
        (journal,) = Path(folder).glob("default/version_0/metrics.jsonl")
        rows = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    speeds = [row["train/tokens_per_sec"] for row in rows if "train/tokens_per_sec" in row]
    # Rows are equally long, so the harmonic mean is tokens over seconds; the first has the warm-up in it.
    return statistics.harmonic_mean(speeds[1:])


def bench() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    found = {}
    for name, shape in SHAPES.items():
        pairs = [(bare(*shape), fitted(*shape)) for _ in range(ROUNDS)]
        ratio = statistics.median(fit / loop for loop, fit in pairs)
        found[name] = {"bare": [loop for loop, _ in pairs], "fit": [fit for _, fit in pairs], "ratio": ratio}
    print(f"\n{cpu_name()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}; medians of {ROUNDS}")
    print(f"{'tokens/s':<34}{'bare loop':>10}{'tinytf fit':>12}{'ratio':>8}")
    for name, row in found.items():
        print(
            f"{name:<34}{statistics.median(row['bare']):>10,.0f}{statistics.median(row['fit']):>12,.0f}"
            f"{row['ratio']:>8.2f}"
        )
    RESULTS.mkdir(exist_ok=True)
    machine = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    path = RESULTS / f"{platform.machine()}-{torch.get_num_threads()}threads.json"
    path.write_text(json.dumps({"machine": machine, "throughput": found}, indent=2) + "\n", encoding="utf-8")


bench()
