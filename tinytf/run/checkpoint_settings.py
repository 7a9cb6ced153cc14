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
        numbers = {key: getattr(self, key) for key in ("save_top_k", "every_n_steps", "keep")}
        wrong = [
            f"checkpoint.{key} is {value}, but must not be negative" for key, value in numbers.items() if value < 0
        ]
        if wrong:
            raise UserError(*wrong)
