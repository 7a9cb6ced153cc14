"""What is exported: a model, its tokenizer, and where both came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tinytf.model import Transformer
from tinytf.run.checkpoint import load_model


@dataclass(frozen=True)
class Subject:
    """The model in float32 on the CPU, in eval mode, and its identity.

    Args:
        model: the network.
        tokenizer: its tokenizer.
        name: the run's name.
        source: what ``export.json`` says of the checkpoint (path, sha256, step).
        entry: the checkpoint's ``tinytf`` entry.
    """

    model: Transformer
    tokenizer: Tokenizer
    name: str = "tinytf"
    source: dict[str, Any] = field(default_factory=dict)
    entry: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_checkpoint(cls, path: Path) -> Subject:
        """Raises UserError as [load_model][tinytf.run.checkpoint.load_model]."""
        loaded = load_model(path)
        source = {"path": str(path.resolve()), "sha256": sha256(path), "step": loaded.step}
        name = loaded.entry.get("config", {}).get("name") or path.resolve().parent.name
        return cls(loaded.model, loaded.tokenizer, str(name), source, loaded.entry)


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
