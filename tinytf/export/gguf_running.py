"""llama.cpp, through llama-cpp-python."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinytf.export.runner import Feed, Runner


@contextmanager
def silent() -> Iterator[None]:
    """No log lines: llama-cpp-python 0.3.36 takes llama.cpp's warnings for errors and prints them all the same.

    What fails raises.
    """
    import llama_cpp
    from llama_cpp._logger import llama_log_callback

    nothing = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(nothing, ctypes.c_void_p(0))
    try:
        yield
    finally:
        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def load(path: Path, **settings: Any) -> Any:
    """A file with the context that it states."""
    import llama_cpp

    with silent():
        return llama_cpp.Llama(str(path), n_ctx=0, verbose=False, **settings)


def open_llama_cpp(path: Path, threads: int) -> Runner:
    """In float32 throughout: by default keys and values are kept in float16, which moves logits by 2e-3."""
    import llama_cpp

    llama = load(
        path,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
    )

    def start(batch_size: int) -> Feed:
        llama.reset()

        def feed(tokens: Tensor) -> Tensor:
            past = llama.n_tokens
            llama.eval(tokens[0].tolist())
            return torch.from_numpy(llama.scores[past : llama.n_tokens].copy())[None]

        return feed

    return Runner(f"llama.cpp (llama-cpp-python {llama_cpp.__version__})", start, max_batch=1)
