"""A checkpoint as `fit` writes it, made in a moment: the commands that read one need no training."""

from dataclasses import asdict

import torch

from tinytf.data.tokenizer import byte_pair_tokenizer, character_tokenizer
from tinytf.model import Transformer, TransformerConfig

TEXT = "ROMEO: But soft, what light through yonder window breaks?\nIt is the east, and Juliet is the sun. "
ACCENTS = "é € 😀 naïve café 東京 "

SETTINGS = {"seed_everything": 1, "name": "toy", "trainer": {"max_steps": 9}, "model": {"optimizer": {"lr": 0.02}}}
PROVENANCE = {
    "time": "2026-01-31T12:00:00.000000Z",
    "command": "tinytf fit --config toy.yaml",
    "git": {"commit": "abc123", "branch": "main", "dirty": True, "diff": "-old line\n+new line"},
    "hardware": {"cpu": "A CPU", "cores": 2, "gpus": []},
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
}


def tokenizer_of(kind):
    if kind == "char":
        return character_tokenizer(TEXT + ACCENTS, end_of_text=False)
    return byte_pair_tokenizer(iter([TEXT * 3]), 290)


def write_checkpoint(
    path, kind="char", *, max_seq_len=32, seed=0, step=7, config=SETTINGS, provenance=PROVENANCE, **more
):
    """Returns the path. ``more`` is added to the file's top level, as Lightning's own state."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_of(kind)
    shape = TransformerConfig(tokenizer.get_vocab_size(), d_model=32, n_heads=2, n_layers=2, max_seq_len=max_seq_len)
    entry = {
        "format": 1,
        "model": asdict(shape),
        "tokenizer": tokenizer.to_str(),
        "config": config,
        "data": {"corpus": "toy", "sha256": "00ff", "split_tokens": {"train": 90, "val": 10}},
        "provenance": provenance,
    }
    weights = {f"model.{name}": weight for name, weight in Transformer(shape).state_dict().items()}
    torch.save({"state_dict": weights, "global_step": step, "tinytf": entry, **more}, path)
    return path
