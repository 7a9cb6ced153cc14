"""The `checkpoint` section of a config."""

from __future__ import annotations

from dataclasses import dataclass

from tinytf.errors import UserError


@dataclass
class CheckpointSettings:
    """What is saved, when, and where.

    Args:
        dir: folder of all runs; each goes to <dir>/<name>/version_<N>.
        save_top_k: checkpoints to keep by lowest val/loss; 0 keeps none.
        every_n_steps: optimizer steps between two periodic checkpoints; 0 saves at the end only.
        keep: periodic checkpoints to keep, the newest; 0 keeps all.
    """

    dir: str = "checkpoints"
    save_top_k: int = 3
    every_n_steps: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        for key in ("save_top_k", "every_n_steps", "keep"):
            if getattr(self, key) < 0:
                raise UserError(f"checkpoint.{key} is {getattr(self, key)}, but must not be negative")
