"""What a training step takes of a device's memory, from the model's sizes: a list of tensors, estimated, not measured.

The parts are those of Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3): weights, gradients and optimizer
state, then what the batch takes. Activations are counted tensor by tensor as Korthikanti et al. 2022 (arXiv:2205.05198,
section 4) do, for this model's operations. `python -m tests.benchmarks memory` compares it with measured peaks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch.optim import Optimizer

from tinytf.model import Transformer, TransformerConfig
from tinytf.training.loss import logits_at_once
from tinytf.training.optim.groups import blocks_without_gradient, flops_per_token, freeze, parameter_groups
from tinytf.training.optim.muon import MuonAdamW
from tinytf.weights.adapter import AdapterConfig, adapter_shapes

Strategy = Literal["one device", "ddp", "fsdp2"]
Part = Literal["weights", "gradients", "optimizer", "gathered", "activations", "logits", "workspace", "passing"]
Phase = Literal["backward begins", "backward ends", "optimizer step"]

BYTES = {"64-true": 8, "32-true": 4, "bf16-true": 2, "16-true": 2, "bf16-mixed": 4, "16-mixed": 4}
"""Per weight, per entry of its gradient and of the optimizer's state, by ``trainer.precision``."""

ALWAYS: dict[Phase, float] = dict.fromkeys(get_args(Phase), 1.0)


@dataclass(frozen=True)
class StepSpec:
    """What decides the memory of one device's step.

    Args:
        config: the model's sizes.
        batch: windows per micro-batch.
        seq_len: tokens per window.
        precision: as ``trainer.precision``, resolved.
        state: entries of optimizer state per hidden parameter, and per other one; see `optimizer_state`.
        muon: whether the optimizer orthogonalizes the hidden matrices.
        accumulates: whether a step is made of more than one micro-batch, so that gradients outlive a backward pass.
        strategy: how the model is distributed.
        devices: over how many.
        checkpointing: whether each block keeps its input alone and computes the rest again (Chen et al. 2016,
            arXiv:1604.06174).
        device: its type, cpu or cuda.
        freeze: patterns of the parameters that are not trained.
        adapter: what is trained in place of the model; of the mixed precisions, its casts are not counted.
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
    device: str = "cpu"
    freeze: tuple[str, ...] = ()
    adapter: AdapterConfig | None = None


@dataclass(frozen=True)
class Trained:
    """What of a model is trained.

    Args:
        matrices: shapes of the blocks' that are, or of an adapter's.
        others: entries of embeddings and norms that are.
        added: an adapter's entries, which the model has not without it.
        embedding: whether the embedding is, and so takes a gradient from its lookup.
        unembedding: whether what gives the logits is.
        blocks: how many a gradient passes, from the last one down.
        flops: of forward and backward for one token.
    """

    matrices: tuple[tuple[int, ...], ...]
    others: int
    added: int
    embedding: bool
    unembedding: bool
    blocks: int
    flops: float

    @property
    def entries(self) -> int:
        """All that are trained."""
        return self.others + sum(math.prod(shape) for shape in self.matrices)


@lru_cache
def trained_of(
    config: TransformerConfig, seq_len: int, patterns: tuple[str, ...], adapter: AdapterConfig | None
) -> Trained:
    """By a model without memory: see `StepSpec`."""
    with torch.device("meta"):
        model = Transformer(config)
    if adapter:
        shapes = tuple(tuple(shape) for shape in adapter_shapes(model, adapter).values())
        added = sum(math.prod(shape) for shape in shapes)
        frozen = config.parameter_count - (0 if config.tie_embeddings else config.vocab_size * config.d_model)
        flops = config.flops_per_token(seq_len) - 2 * frozen + 6 * added
        return Trained(shapes, 0, added, False, False, config.n_layers, flops)
    freeze(model, patterns)
    groups = [group["params"] for group in parameter_groups(model)]
    return Trained(
        tuple(tuple(p.shape) for p in groups[0]),
        sum(p.numel() for group in groups[1:] for p in group),
        0,
        model.embed_tokens.weight.requires_grad,
        model.unembedding.requires_grad,
        config.n_layers - blocks_without_gradient(model),
        flops_per_token(model, seq_len),
    )


def trained_in(step: StepSpec) -> Trained:
    """`trained_of` a step."""
    return trained_of(step.config, step.seq_len, step.freeze, step.adapter)


@dataclass(frozen=True)
class Row:
    """One tensor, or all of one kind, on one device.

    Args:
        part: the sum that it belongs to; ``passing`` counts in the peak alone.
        tensor: its name.
        elements: how many; a fraction if shards or blocks do not divide evenly.
        element_bytes: of one element.
        kept_by: what keeps it alive.
        alive: the share of it that is alive in each phase of the step; none in a phase that is not named.
    """

    part: Part
    tensor: str
    elements: float
    element_bytes: int
    kept_by: str
    alive: dict[Phase, float]

    @property
    def bytes(self) -> float:
        """Of all elements."""
        return self.elements * self.element_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, by part, and the largest sum over the tensors that are alive at the same moment.

    Args:
        weights: the device's own.
        gradients: likewise, with DDP's buckets.
        optimizer: the optimizer's state.
        gathered: FSDP's whole weights and gradients of two blocks and of the embedding.
        activations: what the forward pass keeps for the backward pass.
        logits: of the loss, with its gradient.
        workspace: of the optimizer's step.
        peak: of the step.
        peak_phase: when that is.
        rows: the tensors that are summed.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    logits: float
    workspace: float
    peak: float
    peak_phase: Phase
    rows: tuple[Row, ...]


def estimate(step: StepSpec) -> MemoryEstimate:
    """Sum a step's tensors. What is not the model's is left out: libraries, the CUDA context, loaders' batches."""
    rows = (*model_rows(step), *gathered_rows(step), *activation_rows(step), *loss_rows(step), *workspace_rows(step))
    parts = {part: float(sum(row.bytes for row in rows if row.part == part)) for part in get_args(Part)}
    del parts["passing"]
    phases: tuple[Phase, ...] = get_args(Phase)
    peak, peak_phase = max((float(sum(row.bytes * row.alive.get(phase, 0) for row in rows)), phase) for phase in phases)
    return MemoryEstimate(**parts, peak=peak, peak_phase=peak_phase, rows=rows)


def largest_batch(step: StepSpec, limit: float) -> int:
    """The most windows per micro-batch with a peak of at most ``limit`` bytes; 0 if not one fits."""
    low, high = 0, 1
    while estimate(replace(step, batch=high)).peak <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if estimate(replace(step, batch=middle)).peak <= limit else (low, middle)
    return low


# -- what the model takes, whatever the batch ----------------------------------------------------------------------


def matrices(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """Shapes of one block's matrices: what Muon takes and autocast casts."""
    d, kv, ff = config.d_model, config.kv_heads * config.head_size, config.ff_dim
    heads = config.attention_dim
    return {
        "q_proj": (heads, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, heads),
        "gate_proj": (ff, d), "up_proj": (ff, d), "down_proj": (d, ff),
    }  # fmt: skip


def matrix_elements(config: TransformerConfig) -> int:
    """Of the matrices of all blocks together."""
    return config.n_layers * sum(rows * columns for rows, columns in matrices(config).values())


def model_rows(step: StepSpec) -> Iterator[Row]:
    """Weights, gradients and optimizer state."""
    size, shards = BYTES[step.precision], shards_of(step)
    hidden = matrix_elements(step.config)
    others = step.config.parameter_count - hidden
    trained = trained_in(step)
    of_matrices = trained.entries - trained.others
    if step.adapter:
        yield Row("weights", "adapter: weights", trained.added / shards, size, "the model", ALWAYS)
    in_backward: dict[Phase, float] = {**ALWAYS, "backward begins": float(step.accumulates)}
    for name, whole, count, state in (
        ("blocks' matrices", hidden, of_matrices, step.state[0]),
        ("embedding and norms", others, trained.others, step.state[1]),
    ):
        yield Row("weights", f"{name}: weights", whole / shards, size, "the model", ALWAYS)
        name = "adapter" if step.adapter else name
        if not count:
            continue
        yield Row("gradients", f"{name}: gradients", count / shards, size, "until the optimizer's step", in_backward)
        yield Row("optimizer", f"{name}: state", state * count / shards, size, "the optimizer", ALWAYS)
        if step.strategy == "ddp":
            # As large as all gradients together, in addition to them (torch's DistributedDataParallel,
            # gradient_as_bucket_view).
            yield Row("gradients", f"{name}: buckets", count, size, "DDP's reducer", ALWAYS)
    # The lookup has a dense gradient of its own; tied, it is added to the unembedding's.
    embedding = step.config.vocab_size * step.config.d_model * step.config.tie_embeddings * trained.embedding
    yield Row("passing", "embed_tokens: the lookup's gradient", embedding, size, "autograd", {"backward ends": 1.0})


def gathered_rows(step: StepSpec) -> Iterator[Row]:
    """What FSDP gathers on each device (Zhao et al. 2023, arXiv:2304.11277, section 3.3)."""
    if step.strategy != "fsdp2":
        return
    config, size = step.config, BYTES[step.precision]
    root = (1 if config.tie_embeddings else 2) * config.vocab_size * config.d_model + config.d_model
    block = (config.parameter_count - root) // config.n_layers
    for name, count in (
        ("the block at work", block),
        ("the prefetched block", block),
        # From the start of the forward pass to the end of the backward pass.
        ("embeddings and norm", root),
    ):
        both: dict[Phase, float] = {"backward begins": 1.0, "backward ends": 1.0}
        yield Row("gathered", f"{name}: whole weights", count, size, "FSDP's all-gather", both)
        yield Row("gathered", f"{name}: whole gradients", count, size, "FSDP's reduce-scatter", {"backward ends": 1.0})


def workspace_rows(step: StepSpec) -> Iterator[Row]:
    """The optimizer step's own: the tensors of Muon's largest stack (`orthogonalize`); fused AdamW has none."""
    trained = trained_in(step)
    if not step.muon or not trained.matrices:
        return
    size, shards = BYTES[step.precision], shards_of(step)
    # All matrices of one shape, of all blocks, are iterated on as one stack.
    stacks = Counter(trained.matrices)
    (rows, columns), count = max(
        stacks.items(), key=lambda item: item[1] * (3 * item[0][0] * item[0][1] + 2 * min(item[0]) ** 2)
    )
    for name, elements in (
        ("the momentum", rows * columns),
        ("the iterate", rows * columns),
        ("the next iterate", rows * columns),
        ("the Gram matrix", min(rows, columns) ** 2),
        ("its polynomial", min(rows, columns) ** 2),
    ):
        tensor = f"{name} of {count} matrices {rows} x {columns}"
        yield Row("workspace", tensor, count * elements / shards, size, "Muon", {"optimizer step": 1.0})


def shards_of(step: StepSpec) -> int:
    """Devices that share one copy of weights, gradients and optimizer state."""
    return step.devices if step.strategy == "fsdp2" else 1


# -- what the batch takes ------------------------------------------------------------------------------------------


def activation_rows(step: StepSpec) -> Iterator[Row]:
    """What the forward pass keeps for the backward pass; with checkpointing, of one block at a time."""
    config, size, tokens = step.config, BYTES[step.precision], step.batch * step.seq_len
    n, mixed = trained_in(step).blocks, step.precision.endswith("-mixed")
    # The backward pass frees block by block: at its end one block's tensors are left.
    alive: dict[Phase, float] = {"backward begins": 1.0, "backward ends": 1 / max(1, n)}
    of_block = [row for row in block_tensors(config, step.precision) if is_kept(row, step.adapter)]
    of_block += adapter_tensors(config, step.adapter, size)
    rows = [(name, n * tokens * count, width, by) for name, count, width, by in of_block]
    rows += [(name, tokens * count, width, by) for name, count, width, by in outer_tensors(config, step.precision)]
    if mixed:
        rows.append(("blocks' matrices: weight casts", matrix_elements(config), 2, "matrix product"))
    for name, count, width, by in rows:
        yield Row("activations", name, count / max(1, n) if step.checkpointing else count, width, by, alive)
    if step.checkpointing:
        yield Row("activations", "blocks: inputs", tokens * n * config.d_model, size, "checkpoint", alive)


def block_tensors(config: TransformerConfig, precision: str) -> list[tuple[str, int, int, str]]:
    """What one block keeps for each token: name, elements, bytes per element, the operation that keeps it.

    Operation by operation, in the order of `Block.forward`, as they run eagerly; compiled blocks keep less. Rotation
    keeps nothing: its other factor takes no gradient.
    """
    d, kv, ff = config.d_model, config.kv_heads * config.head_size, config.ff_dim
    heads, mixed = config.attention_dim, precision.endswith("-mixed")
    wide = BYTES[precision]  # The residual stream and norms.
    narrow = 2 if mixed else wide  # What enters a matrix product, attention or SiLU.
    rows = [
        ("input_layernorm: input", d, wide, "RMSNorm"),
        ("input_layernorm: normalized", d, wide, "RMSNorm"),
        ("input_layernorm: 1 / rms", 1, wide, "RMSNorm"),
        *projection_inputs(("q_proj", "k_proj", "v_proj"), d, precision),
        ("q_norm: input", heads * config.qk_norm, wide, "RMSNorm"),
        ("q_norm: normalized", heads * config.qk_norm, wide, "RMSNorm"),
        ("q_norm: 1 / rms", config.n_heads * config.qk_norm, wide, "RMSNorm"),
        ("k_norm: input", kv * config.qk_norm, wide, "RMSNorm"),
        ("k_norm: normalized", kv * config.qk_norm, wide, "RMSNorm"),
        ("k_norm: 1 / rms", config.kv_heads * config.qk_norm, wide, "RMSNorm"),
        ("attention: q", heads, narrow, "SDPA"),
        ("attention: k", kv, narrow, "SDPA"),
        ("attention: v", kv, narrow, "SDPA"),
        ("attention: output", heads, narrow, "SDPA"),
        ("attention: log-sum-exp", config.n_heads, wide, "SDPA"),
        # The heads side by side: without QK-norm, attention's output lies in memory like that already.
        ("o_proj: input", heads * config.qk_norm, narrow, "matrix product"),
        ("attention: dropout_mask", d * bool(config.dropout), narrow, "dropout"),
        ("post_attention_layernorm: input", d, wide, "RMSNorm"),
        ("post_attention_layernorm: normalized", d, wide, "RMSNorm"),
        ("post_attention_layernorm: 1 / rms", 1, wide, "RMSNorm"),
        *projection_inputs(("gate_proj", "up_proj"), d, precision),
        ("mlp: gate", ff, narrow, "SiLU"),
        ("mlp: silu(gate)", ff, narrow, "product"),
        ("mlp: up", ff, narrow, "product"),
        ("down_proj: input", ff, narrow, "matrix product"),
        ("mlp: dropout_mask", d * bool(config.dropout), narrow, "dropout"),
    ]
    return [row for row in rows if row[1]]


def is_kept(row: tuple[str, int, int, str], adapter: AdapterConfig | None) -> bool:
    """Whether a row of `block_tensors` is kept beside an adapter: a frozen matrix keeps no input, but A keeps it."""
    if adapter is None or row[3] != "matrix product":
        return True
    return not adapter.dropout and any(name in adapter.targets for name in row[0].partition(":")[0].split(", "))


def adapter_tensors(
    config: TransformerConfig, adapter: AdapterConfig | None, size: int
) -> list[tuple[str, int, int, str]]:
    """What an adapter keeps of its own, in one block, as `block_tensors` has it."""
    if adapter is None:
        return []
    columns = sum(matrices(config)[name][1] for name in adapter.targets)
    rows = [
        ("adapter: A's output", adapter.rank * len(adapter.targets), size, "matrix product"),
        ("adapter: dropout_mask", columns * bool(adapter.dropout), size, "dropout"),
        ("adapter: A's input", columns * bool(adapter.dropout), size, "matrix product"),
    ]
    return [row for row in rows if row[1]]


def outer_tensors(config: TransformerConfig, precision: str) -> list[tuple[str, int, int, str]]:
    """What embedding, last norm and unembedding keep for each token, as `block_tensors` has it."""
    d, wide = config.d_model, BYTES[precision]
    rows = [
        # The CPU's mask is a tensor of the input's type, already scaled; CUDA's is one byte per element.
        ("embed_tokens: dropout_mask", d * bool(config.dropout), wide, "dropout"),
        ("norm: input", d, wide, "RMSNorm"),
        ("norm: normalized", d, wide, "RMSNorm"),
        *projection_inputs(("unembed",), d, precision),
    ]
    return [row for row in rows if row[1]]


def projection_inputs(names: tuple[str, ...], width: int, precision: str) -> list[tuple[str, int, int, str]]:
    """The tensor that several matrices multiply: one for all; under autocast each product casts a copy for itself."""
    if precision.endswith("-mixed"):
        return [(f"{name}: input cast", width, 2, "matrix product") for name in names]
    return [(f"{', '.join(names)}: input", width, BYTES[precision], "matrix product")]


def loss_rows(step: StepSpec) -> Iterator[Row]:
    """The loss at its largest (`tinytf.training.loss`): as many rows of logits as are alive at once, in float32."""
    config, tokens = step.config, step.batch * step.seq_len
    at_once = min(tokens, logits_at_once(config.vocab_size, step.device))
    alive: dict[Phase, float] = {"backward begins": 1.0}
    for name in ("log-probabilities", "log-probabilities' gradient", "logits' gradient"):
        yield Row("logits", f"loss: {name}", at_once * config.vocab_size, 4, "cross-entropy", alive)
    if at_once < tokens and trained_in(step).unembedding:
        embedding, size = config.vocab_size * config.d_model, BYTES[step.precision]
        for name in ("a chunk's gradient", "the sum over chunks"):
            yield Row("logits", f"unembed: {name}", embedding, size, "autograd", alive)


# -- what an optimizer keeps ---------------------------------------------------------------------------------------


def optimizer_state(build: Callable[[Iterable[Any]], Optimizer]) -> tuple[tuple[float, float], bool]:
    """Entries of state per hidden parameter and per other one, and whether the optimizer is Muon.

    Counted in the optimizer itself: one step on a tiny model.
    """
    model = Transformer(TransformerConfig(vocab_size=32, d_model=32, n_heads=2, n_layers=1))
    groups = parameter_groups(model)
    hidden = {id(p) for p in groups[0]["params"]}
    optimizer = build(groups)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    state, entries = {True: 0, False: 0}, {True: 0, False: 0}
    for p in model.parameters():
        entries[id(p) in hidden] += p.numel()
        buffers = (v for v in optimizer.state[p].values() if isinstance(v, torch.Tensor) and v.shape == p.shape)
        state[id(p) in hidden] += sum(buffer.numel() for buffer in buffers)
    return (state[True] / entries[True], state[False] / entries[False]), isinstance(optimizer, MuonAdamW)
