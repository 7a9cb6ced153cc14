"""Text in, batches of token ids out.

`TextDataModule` is loaded when it is first asked for: `tinytf.data.tokenizer` serves `generate`, which must not wait
for Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinytf.data.datamodule import TextDataModule

__all__ = ["TextDataModule"]


def __getattr__(name: str) -> Any:
    if name == "TextDataModule":
        from tinytf.data.datamodule import TextDataModule

        return TextDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
