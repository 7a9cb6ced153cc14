"""nanoGPT's recipe for a CPU, in plain PyTorch: GPT-2's layers and AdamW, from torch.nn and torch.optim alone."""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinytf.data.datamodule import TextDataModule

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
STEPS, WARMUP, PEAK, FLOOR, CLIP = 2000, 100, 1e-3, 1e-4, 1.0


class GPT(nn.Module):
    """Learned positions, LayerNorm, GELU, no biases, tied embeddings; weights drawn as GPT-2's are."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, bias=False
        )
        self.blocks = nn.TransformerEncoder(
            layer, LAYERS, norm=nn.LayerNorm(WIDTH, bias=False), enable_nested_tensor=False
        )
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(("out_proj.weight", "linear2.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * LAYERS) if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.tokens(tokens) + self.positions.weight[:length]
        return F.linear(self.blocks(x, mask=mask, is_causal=True), self.tokens.weight)


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction=reduction)


def factor(step: int) -> float:
    """Of the peak learning rate: linear warmup, half a cosine down to the floor."""
    if step < WARMUP:
        return (step + 1) / (WARMUP + 1)
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return (FLOOR + 0.5 * (1 + math.cos(math.pi * progress)) * (PEAK - FLOOR)) / PEAK


def train(corpus: str) -> tuple[float, float]:
    """(validation loss over the whole split, training seconds)."""
    data = TextDataModule(corpus=corpus, batch_size=BATCH, seq_len=CONTEXT)
    data.prepare_data()
    data.setup()
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(1337)
    model = GPT(data.vocab_size)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [{"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([{"params": matrices}, *norms], lr=PEAK, betas=(0.9, 0.99), weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    began = time.perf_counter()
    for _, (tokens, targets) in zip(range(STEPS), data.train_dataloader(), strict=False):
        loss_of(model, tokens, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    return validation_loss(model, data), seconds


@torch.no_grad()
def validation_loss(model: nn.Module, data: TextDataModule) -> float:
    model.eval()
    batches = list(data.val_dataloader())
    total = sum(loss_of(model, tokens, targets, "sum").item() for tokens, targets in batches)
    return total / sum(int((targets >= 0).sum()) for _, targets in batches)
