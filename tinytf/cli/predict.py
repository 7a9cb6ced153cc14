"""`tinytf predict`: where in the validation text the model is surprised."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tinytf.data.module import TextDataModule
from tinytf.training.loss import IGNORE


def print_predictions(batches: Iterable[Any], data: TextDataModule) -> None:
    """Print one JSON object a window: its place, length in tokens, loss, perplexity and text."""
    start = 0
    for batch in batches:
        for losses, targets in zip(batch["losses"], batch["targets"], strict=True):
            real = targets != IGNORE
            if real.any():
                print(json.dumps(window(start, losses[real], targets[real], data), ensure_ascii=False))
                start += int(real.sum())


def window(start: int, losses: Tensor, targets: Tensor, data: TextDataModule) -> dict[str, Any]:
    """One window's line: place and length in tokens, loss in nats a token, its text."""
    loss = losses.mean().item()
    text = data.tokenizer.decode(targets.tolist(), skip_special_tokens=False)
    return {"start": start, "tokens": len(losses), "loss": loss, "perplexity": math.exp(loss), "text": text}
