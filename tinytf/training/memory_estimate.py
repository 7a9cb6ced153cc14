"""What a training step takes of a device's memory, from the shape of the model: an account, not a measurement.

The parts are those of Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3): weights, gradients and optimizer
state, then what the batch takes. Activations are counted tensor by tensor as Korthikanti et al. 2022 (arXiv:2205.05198,
section 4) do, for this model's operations. `python -m tests.benchmarks memory` compares it with measured peaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from tinytf.model import Transformer, TransformerConfig
from tinytf.training.loss import LOGITS_AT_ONCE
from tinytf.training.optim.groups import parameter_groups
from tinytf.training.optim.muon import MuonAdamW

Strategy = Literal["one device", "ddp", "fsdp"]
BYTES = {"64-true": 8, "32-true": 4, "bf16-true": 2, "16-true": 2, "bf16-mixed": 4, "16-mixed": 4}
"""Of a weight, of its gradient and of an entry of the optimizer's state, by ``trainer.precision``."""


@dataclass(frozen=True)
class Job:
    """What decides the memory of one device's step.

    Args:
        config: the model's shape.
        batch: windows in a micro-batch.
        seq_len: tokens in a window.
        precision: as ``trainer.precision``, resolved.
        state: entries of optimizer state for each hidden parameter, and for each other one; see `optimizer_needs`.
        muon: whether the optimizer orthogonalises the hidden matrices.
        accumulates: whether a step is made of more than one micro-batch, so that gradients outlive a backward pass.
        strategy: how the model is spread.
        devices: over how many.
        checkpointing: whether of each block only its input is kept, and the rest made again (Chen et al. 2016,
            arXiv:1604.06174).
    """

    config: TransformerConfig
    batch: int
    seq_len: int
    precision: str = "32-true"
    state: tuple[float, float] = (1.0, 2.0)
    muon: bool = True
    accumulates: bool = False
    strategy: Strategy = "one device"
    devices: int = 1
    checkpointing: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by part, and the largest sum of parts that live at the same moment.

    Args:
        weights: what a device keeps of them.
        gradients: likewise, with DDP's buckets.
        optimizer: the optimizer's state.
        gathered: FSDP's whole weights and gradients of the blocks at work and of the embedding.
        activations: what the forward pass keeps for the backward pass.
        logits: of the loss, with its gradient.
        workspace: of the optimizer's step.
        peak: of the step.
        moment: when that is: ``backward begins``, ``backward ends`` or ``optimizer step``.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    logits: float
    workspace: float
    peak: float
    moment: str


def memory(job: Job) -> Memory:
    """The account of a step. It leaves out what is not the model's: libraries, the CUDA context, loaders' batches."""
    size, share = BYTES[job.precision], job.devices if job.strategy == "fsdp" else 1
    shape = job.config
    hidden = shape.n_layers * block_matrices(shape)
    others = shape.parameter_count - hidden
    weights = size * shape.parameter_count / share
    gradients = weights
    optimizer = size * (job.state[0] * hidden + job.state[1] * others) / share
    # DDP reduces in buckets as large as all gradients together, beside them (torch's DistributedDataParallel,
    # gradient_as_bucket_view).
    buckets = gradients if job.strategy == "ddp" else 0.0
    gathered = size * gathered_entries(shape) if job.strategy == "fsdp" else 0.0
    tokens = job.batch * job.seq_len
    activations = kept_bytes(job, tokens)
    head = logits_bytes(shape, tokens, job.precision)
    workspace = workspace_bytes(job) / share
    always = weights + optimizer + buckets
    # FSDP gathers weights in the forward pass, and gradients only in the backward pass.
    begins = always + gathered / 2 + activations + head + (gradients if job.accumulates else 0.0)
    ends = always + gathered + gradients + activations / shape.n_layers + size * shape.vocab_size * shape.d_model
    steps = always + gradients + workspace
    peak, moment = max((begins, "backward begins"), (ends, "backward ends"), (steps, "optimizer step"))
    return Memory(weights, gradients + buckets, optimizer, gathered, activations, head, workspace, peak, moment)


def largest_batch(job: Job, limit: float) -> int:
    """The most windows a micro-batch whose step's peak is at most ``limit`` bytes; 0 where not one fits."""
    low, high = 0, 1
    while memory(replace(job, batch=high)).peak <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if memory(replace(job, batch=middle)).peak <= limit else (low, middle)
    return low


# -- the parts -----------------------------------------------------------------------------------------------------


def block_matrices(shape: TransformerConfig) -> int:
    """Entries of one block's matrices: what Muon takes."""
    kv = shape.kv_heads * shape.head_dim
    return 2 * shape.d_model**2 + 2 * shape.d_model * kv + 3 * shape.d_model * shape.ff_dim


def kept_bytes(job: Job, tokens: int) -> float:
    """What the forward pass of a micro-batch keeps; with checkpointing, each block's input and one block's all."""
    shape = job.config
    everything = tokens * activation_bytes(shape, job.precision) + weight_casts(shape, job.precision)
    if not job.checkpointing:
        return everything
    return everything / shape.n_layers + tokens * shape.n_layers * shape.d_model * BYTES[job.precision]


def activation_bytes(shape: TransformerConfig, precision: str) -> float:
    """Kept for the backward pass, for each token of a micro-batch, in bytes, all layers together.

    Operation by operation as they run eagerly; compiled blocks keep less. A norm keeps its input and what it
    multiplies with its weight; a matrix keeps its input once, however many matrices share it; the attention kernel
    keeps q, k, v, its output and a number a head; with QK-norm, q and k are kept before, in and after it, and the heads
    side by side are a copy of attention's output. SiLU and the gate's product keep their inputs.
    """
    d, kv, ff = shape.d_model, shape.kv_heads * shape.head_dim, shape.ff_dim
    if precision.endswith("-mixed"):
        return shape.n_layers * _mixed_block(shape) + 8.0 * d + 2.0 * d
    size = BYTES[precision]
    norms = 2 * 3 * d
    heads = (3 * (d + kv) + d if shape.qk_norm else d + kv) + kv + d
    ff_entries = 4 * ff
    noise = 2 * d if shape.dropout else 0
    small = 2 + shape.n_heads + (shape.n_heads + shape.kv_heads if shape.qk_norm else 0)
    embedding = d if shape.dropout else 0
    return float(size * (shape.n_layers * (norms + heads + ff_entries + noise + small) + 3 * d + embedding))


def _mixed_block(shape: TransformerConfig) -> float:
    """Bytes of one block under autocast: residual stream and norms in 4 bytes, what enters a matrix product in 2.

    Each product casts its input by itself, so the three of q, k and v keep three copies of one tensor.
    """
    d, kv, ff = shape.d_model, shape.kv_heads * shape.head_dim, shape.ff_dim
    norms = 2 * (2 * 4 * d) + 3 * 2 * d + 2 * 2 * d
    heads = ((2 * 4 + 2) * (d + kv) + 2 * d if shape.qk_norm else 2 * (d + kv)) + 2 * kv + 2 * d
    noise = 2 * 2 * d if shape.dropout else 0
    return float(norms + heads + 4 * 2 * ff + noise + 4 * (2 + 2 * shape.n_heads + shape.kv_heads))


def weight_casts(shape: TransformerConfig, precision: str) -> float:
    """Bytes of the two-byte copies of the blocks' matrices that autocast keeps for the backward pass."""
    return 2.0 * shape.n_layers * block_matrices(shape) if precision.endswith("-mixed") else 0.0


def logits_bytes(shape: TransformerConfig, tokens: int, precision: str) -> float:
    """The loss at its largest: log-probabilities, their gradient and the logits' one, of as many rows as live at once.

    Where the loss goes in chunks (`tinytf.training.loss`), the embedding's gradient is summed up in two copies.
    """
    rows = min(tokens, max(1, LOGITS_AT_ONCE // shape.vocab_size))
    sums = 2 * BYTES[precision] * shape.vocab_size * shape.d_model if rows < tokens else 0
    return 3.0 * 4 * rows * shape.vocab_size + sums


def workspace_bytes(job: Job) -> float:
    """The optimizer step's own tensors: Muon's stack of all matrices of one shape, iterated on (`orthogonalize`).

    The stack, the iterate and the next one, and two Gram matrices each; AdamW's fused step has none.
    """
    if not job.muon:
        return 0.0
    shape = job.config
    d, kv, ff, n = shape.d_model, shape.kv_heads * shape.head_dim, shape.ff_dim, shape.n_layers
    stacks: dict[tuple[int, int], int] = {}
    for rows, columns, count in ((d, d, 2), (kv, d, 2), (ff, d, 2), (d, ff, 1)):
        stacks[rows, columns] = stacks.get((rows, columns), 0) + count * n
    largest = max(n * (3 * rows * columns + 2 * min(rows, columns) ** 2) for (rows, columns), n in stacks.items())
    return float(BYTES[job.precision] * largest)


def gathered_entries(shape: TransformerConfig) -> int:
    """Entries that FSDP holds whole on each device: weights and gradients of two blocks, and of the embedding.

    The block at work and the next one, prefetched, and as much of gradients on their way (Zhao et al. 2023,
    arXiv:2304.11277, section 3.3); the embedding stays from the start of the forward pass to the end of the backward.
    """
    root = shape.vocab_size * shape.d_model + shape.d_model
    block = (shape.parameter_count - root) // shape.n_layers
    return 2 * (2 * block + root)


def optimizer_needs(build: Callable[[Iterable[Any]], Optimizer]) -> tuple[tuple[float, float], bool]:
    """Entries of state kept for each hidden parameter and for each other one, and whether the optimizer is Muon.

    Asked of the optimizer itself: one step on a tiny model.
    """
    model = Transformer(TransformerConfig(vocab_size=32, d_model=32, n_heads=2, n_layers=1))
    groups = parameter_groups(model)
    hidden = {id(p) for p in groups[0]["params"]}
    optimizer = build(groups)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    kept, entries = {True: 0, False: 0}, {True: 0, False: 0}
    for p in model.parameters():
        entries[id(p) in hidden] += p.numel()
        buffers = (v for v in optimizer.state[p].values() if isinstance(v, torch.Tensor) and v.shape == p.shape)
        kept[id(p) in hidden] += sum(buffer.numel() for buffer in buffers)
    return (kept[True] / entries[True], kept[False] / entries[False]), isinstance(optimizer, MuonAdamW)
