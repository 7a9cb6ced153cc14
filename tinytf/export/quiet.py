"""Exporters talk a lot; this keeps their remarks off the screen and lets their errors through."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

TALKERS = (
    "torch",
    "torch.onnx",
    "torch.export",
    "torch._inductor",
    "onnxscript",
    "onnx_ir",
    "transformers",
    "gguf",
    "gguf.gguf_writer",
    "",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings and log lines below ERROR; levels and filters are put back."""
    levels = {name: logging.getLogger(name).level for name in TALKERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in TALKERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
