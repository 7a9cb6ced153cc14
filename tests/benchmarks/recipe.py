"""nanoGPT's recipes for Shakespeare's characters, in plain PyTorch: GPT-2's layers and AdamW, of torch alone."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinytf.data.datamodule import TextDataModule


@dataclass(frozen=True)
class Recipe:
    """Sizes, and what the optimizer does; the defaults are those for a CPU (its README's "I only have a macbook").

    Args:
        validate_every: steps between two validations; None validates at the end alone.
    """

    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 64
    batch: int = 12
    steps: int = 2000
    dropout: float = 0.0
    device: str = "cpu"
    validate_every: int | None = None
    warmup: int = 100
    peak: float = 1e-3
    floor: float = 1e-4
    clip: float = 1.0

    def factor(self, step: int) -> float:
        """Of the peak learning rate: linear warmup, half a cosine down to the floor."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / (self.steps - self.warmup)
        return (self.floor + 0.5 * (1 + math.cos(math.pi * progress)) * (self.peak - self.floor)) / self.peak


FOR_CPU = Recipe()
FOR_GPU = Recipe(6, 6, 384, 256, 64, steps=5000, dropout=0.2, device="cuda", validate_every=250)
"""Its config/train_shakespeare_char.py, which its README says reaches 1.4697 in three minutes on an A100."""


class GPT(nn.Module):
    """Learned positions, LayerNorm, GELU, no biases, tied embeddings; weights drawn as GPT-2's are."""

    def __init__(self, vocab_size: int, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(recipe.context, width)
        self.dropout = nn.Dropout(recipe.dropout)
        layer = nn.TransformerEncoderLayer(
            width, recipe.heads, 4 * width, recipe.dropout, "gelu", batch_first=True, norm_first=True, bias=False
        )
        layer.dropout = nn.Identity()  # The one between the two products, which GPT-2 has not.
        self.blocks = nn.TransformerEncoder(
            layer, recipe.layers, norm=nn.LayerNorm(width, bias=False), enable_nested_tensor=False
        )
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(("out_proj.weight", "linear2.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * recipe.layers) if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions.weight[:length])
        return F.linear(self.blocks(x, mask=mask, is_causal=True), self.tokens.weight)


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    with torch.autocast("cuda", torch.bfloat16, enabled=tokens.is_cuda):
        logits = model(tokens)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction=reduction)


def train(corpus: str, recipe: Recipe = FOR_CPU) -> list[tuple[float, float]]:
    """(validation loss over the whole split, training seconds so far) of each validation; on a GPU compiled."""
    data = TextDataModule(corpus=corpus, batch_size=recipe.batch, seq_len=recipe.context)
    data.prepare_data()
    data.setup()
    on_gpu = recipe.device == "cuda"
    torch.set_float32_matmul_precision("high" if on_gpu else "highest")  # As its train.py has it.
    torch.manual_seed(1337)
    model: nn.Module = GPT(data.vocab_size, recipe).to(recipe.device)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [{"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, *norms], lr=recipe.peak, betas=(0.9, 0.99), weight_decay=0.1, fused=on_gpu or None
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.factor)
    forward = torch.compile(model) if on_gpu else model
    found: list[tuple[float, float]] = []
    seconds, began = 0.0, time.perf_counter()
    for step, (tokens, targets) in zip(range(1, recipe.steps + 1), data.train_dataloader(), strict=False):
        loss_of(forward, tokens.to(recipe.device), targets.to(recipe.device)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % (recipe.validate_every or recipe.steps) == 0:
            if on_gpu:
                torch.cuda.synchronize()
            seconds += time.perf_counter() - began
            found.append((validation_loss(model, data, recipe.device), seconds))
            began = time.perf_counter()
    return found


@torch.no_grad()
def validation_loss(model: nn.Module, data: TextDataModule, device: str) -> float:
    model.eval()
    batches = [(tokens.to(device), targets.to(device)) for tokens, targets in data.val_dataloader()]
    total = sum(loss_of(model, tokens, targets, "sum").item() for tokens, targets in batches)
    model.train()
    return total / sum(int((targets >= 0).sum()) for _, targets in batches)
