"""The example that exporters trace, and the models that it is too long for."""

from __future__ import annotations

import torch
from torch import Tensor

from tinytf.export.subject import Subject

EXPORT_SHAPE = (2, 3)
"""Batch and length; no case of the proof has it."""


def example() -> Tensor:
    """Token ids of that shape."""
    return torch.zeros(EXPORT_SHAPE, dtype=torch.long)


def refusal(subject: Subject) -> str | None:
    """Why a model cannot be traced: its context is shorter than the example; None where it can."""
    limit, length = subject.model.config.max_seq_len, EXPORT_SHAPE[1]
    if limit >= length:
        return None
    return f"it is traced with {length} tokens, and max_seq_len is {limit}"
