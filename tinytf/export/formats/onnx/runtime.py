"""ONNX graphs in onnxruntime: sessions, a graph with its cache, and the engine of ``tinytf generate --model``."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tinytf.data.tokenizer import tokenizer_from_file
from tinytf.errors import UserError
from tinytf.export.parity.runner import Feed, Runner
from tinytf.model import TransformerConfig

PAST, PRESENT = "past_key_values", "present"
METADATA = "tinytf"
TOKENIZER = "tokenizer.json"


def cache_names(prefix: str, layers: int) -> list[str]:
    """Names of the key-value inputs or outputs, as transformers and onnxruntime-genai call them."""
    return [f"{prefix}.{layer}.{half}" for layer in range(layers) for half in ("key", "value")]


def runtime_name() -> str:
    """Name and version, for the report."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def open_session(graph: Path | bytes, threads: int) -> Any:
    """An onnxruntime session on the CPU, of a file or its content, that logs errors only."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
    )


def recorded_metadata(session: Any) -> dict[str, Any] | None:
    """The model's config and start token as the file states them, or None if tinytf did not write the file."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    try:
        stated: dict[str, Any] = json.loads(text or "null")
        TransformerConfig.from_mapping(stated)
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None
    return stated


def cached_runner(session: Any) -> Runner:
    """A session whose keys and values go back in at each step."""
    past_inputs = [node for node in session.get_inputs() if node.name.startswith(PAST)]
    outputs = [node.name for node in session.get_outputs()]

    def start(batch_size: int) -> Feed:
        past = {node.name: torch.zeros(batch_size, node.shape[1], 0, node.shape[3]).numpy() for node in past_inputs}

        def feed(tokens: Tensor) -> Tensor:
            logits, *present = session.run(outputs, {"tokens": tokens.numpy(), **past})
            past.update(zip(past, present, strict=True))
            return torch.from_numpy(logits)

        return feed

    return Runner(runtime_name(), start)


class OnnxEngine:
    """A [decoding engine][tinytf.generation.decoding.Engine] over a graph with key-values.

    Args:
        path: a ``.onnx`` file that tinytf exported, one of ``model_kv*.onnx``.
        threads: of onnxruntime.

    Raises:
        UserError: if the file cannot be run, has no cache, or does not state its config.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        require_onnx(path)
        try:
            session = open_session(path, threads)
        except Exception as error:  # The binding has its own classes for each kind of broken file.
            raise UserError(f"--model {path}: onnxruntime cannot load it ({' '.join(str(error).split())})") from error
        stated = recorded_metadata(session)
        if stated is None:
            raise UserError(f"--model {path}: it was not exported by tinytf, so its context length is unknown")
        if f"{PAST}.0.key" not in {node.name for node in session.get_inputs()}:
            raise UserError(f"--model {path}: it has no key-value cache; give model_kv.onnx, or export onnx-kv")
        self.vocab_size, self.max_seq_len = stated["vocab_size"], stated["max_seq_len"]
        self.start_token: int | None = stated.get("start_token")
        self._runner = cached_runner(session)
        self._feed, self._length = self._runner.start(1), 0

    def prefill(self, tokens: Tensor) -> Tensor:
        """See `Engine`."""
        self._feed, self._length = self._runner.start(len(tokens)), 0
        return self._last_logits(tokens)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Engine`."""
        return self._last_logits(tokens[:, None])

    def _last_logits(self, tokens: Tensor) -> Tensor:
        self._length += tokens.shape[1]
        if self._length > self.max_seq_len:
            raise ValueError(f"a sequence of {self._length} tokens is past max_seq_len {self.max_seq_len}")
        feed: Feed = self._feed
        return feed(tokens.contiguous())[:, -1]


def require_onnx(path: Path) -> None:
    """Raise UserError if there is nothing to run, or nothing to run it with."""
    if path.suffix != ".onnx":
        raise UserError(f"--model {path}: give a .onnx file with key-values, such as model_kv.onnx")
    if not path.is_file():
        raise UserError(f"--model {path}: there is no such file")
    if find_spec("onnxruntime") is None:
        raise UserError(f"--model {path}: running it needs onnxruntime: pip install 'tinytf[export]'")


def bundled_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the folder of a model; UserError if there is none."""
    return tokenizer_from_file(path.parent / TOKENIZER)
