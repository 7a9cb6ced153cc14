"""An exported ONNX graph where a checkpoint could stand: the engine that `tinytf generate --model` decodes with."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from tinytf.data.tokenizer import tokenizer_from_file
from tinytf.errors import UserError
from tinytf.export.onnx_files import PAST, cached_runner, open_session, stated_config
from tinytf.export.runner import Feed, Runner

TOKENIZER = "tokenizer.json"


class OnnxEngine:
    """A [decoding engine][tinytf.generation.decoding.Engine] over a graph with key-values.

    Args:
        path: a ``.onnx`` file that tinytf exported: one of ``model_kv*.onnx``.
        threads: of onnxruntime.

    Raises:
        UserError: where the file cannot be run, has no cache, or does not state its shape.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        require(path)
        try:
            session = open_session(path, threads)
        except Exception as error:  # the binding has its own classes for each kind of broken file
            raise UserError(f"--model {path}: onnxruntime cannot load it ({' '.join(str(error).split())})") from error
        config = stated_config(session)
        if config is None:
            raise UserError(f"--model {path}: it was not exported by tinytf, so its context length is unknown")
        runner = _runner(path, session)
        self.vocab_size, self.max_seq_len = config.vocab_size, config.max_seq_len
        self._runner, self._feed, self._length = runner, runner.start(1), 0

    def prefill(self, tokens: Tensor) -> Tensor:
        """Forget everything, read ids ``[batch, seq]``, return the last position's logits ``[batch, vocab_size]``."""
        self._feed, self._length = self._runner.start(len(tokens)), 0
        return self._last_logits(tokens)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more id a row, ``[batch]``, return its position's logits ``[batch, vocab_size]``."""
        return self._last_logits(tokens[:, None])

    def _last_logits(self, tokens: Tensor) -> Tensor:
        self._length += tokens.shape[1]
        if self._length > self.max_seq_len:
            raise ValueError(f"a sequence of {self._length} tokens is past max_seq_len {self.max_seq_len}")
        feed: Feed = self._feed
        return feed(tokens.contiguous())[:, -1]


def require(path: Path) -> None:
    """Raise UserError where there is nothing to run, or nothing to run it with."""
    if path.suffix != ".onnx":
        raise UserError(f"--model {path}: give a .onnx file with key-values, such as model_kv.onnx")
    if not path.is_file():
        raise UserError(f"--model {path}: there is no such file")
    if find_spec("onnxruntime") is None:
        raise UserError(f"--model {path}: running it needs onnxruntime: pip install 'tinytf[export]'")


def _runner(path: Path, session: Any) -> Runner:
    """How to run this graph."""
    inputs = {node.name for node in session.get_inputs()}
    if f"{PAST}.0.key" not in inputs:
        raise UserError(f"--model {path}: it has no key-value cache; give model_kv.onnx, or export onnx-kv")
    return cached_runner(session)


def tokenizer_beside(path: Path) -> Tokenizer:
    """The bundle's tokenizer.

    Raises:
        UserError: where there is none in the folder of the model.
    """
    return tokenizer_from_file(path.parent / TOKENIZER)
