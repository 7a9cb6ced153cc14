"""ONNX graphs in onnxruntime: sessions, a graph with its cache, and the engine of ``tinytf generate --model``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tinytf.data.tokenizer import tokenizer_from_file
from tinytf.errors import UserError
from tinytf.export.formats.onnx.cached_graph import (
    INPUTS,
    PAST,
    PRESENT,
    SHARED_SCALE,
    CachedGraph,
    Group,
    cache_names,
)
from tinytf.model import TransformerConfig
from tinytf.utils.files import open_user_file, read_text
from tinytf.utils.text import printable
from tinytf.weights.huggingface import CHAT_TEMPLATE

METADATA = "tinytf"
TOKENIZER = "tokenizer.json"
PROTOBUF_LIMIT = 2**31
MAX_TEMPLATE = 2**20
"""Bytes; those of pretrained models have some 10,000."""


def open_session(graph: Path | bytes, threads: int) -> Any:
    """An onnxruntime session on the CPU, of a file or of a graph made here; it logs nothing.

    Raises:
        ValueError: if a file is not one that tinytf writes: one file, whole, without data elsewhere or control flow.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # Errors are raised too, and its log of them is colored, terminal or not.
    if isinstance(graph, Path):
        require_own_kind(graph)
    return onnxruntime.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
    )


def require_own_kind(path: Path) -> set[str]:
    """Names of a graph's operators; ValueError at what tinytf never writes and a stranger's file may hold.

    Nothing of it is run.
    """
    import onnx

    if not path.is_file():
        raise ValueError("it is no regular file")
    if path.stat().st_size >= PROTOBUF_LIMIT:
        raise ValueError("it is larger than the 2 GB that one ONNX file holds")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own class, which differs between its implementations.
        raise ValueError(f"it is not an ONNX file ({' '.join(str(error).split())})") from error
    tensors = list(proto.graph.initializer)
    for attribute in (attribute for node in proto.graph.node for attribute in node.attribute):
        # A Loop could run for ever.
        if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
            raise ValueError("it holds control flow or sparse tensors, which no file of tinytf has")
        tensors += [attribute.t, *attribute.tensors]
    if proto.functions or proto.graph.sparse_initializer:
        raise ValueError("it holds functions or sparse tensors, which no file of tinytf has")
    # Data elsewhere may be in any file of the disk.
    if any(tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise ValueError("it keeps data in other files, which no file of tinytf does")
    return {node.op_type for node in proto.graph.node}


def stated_model(session: Any) -> tuple[TransformerConfig, int | None]:
    """The config and start token that a file states; ValueError if it states none, or not those of its graph."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise ValueError("it was not exported by tinytf, so its context length is unknown")
    try:
        stated = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its metadata is not JSON ({error})") from error
    if not isinstance(stated, dict):
        raise ValueError("its metadata is not a model's config")
    config = TransformerConfig.from_mapping(stated)
    start = stated.get("start_token")
    if start is not None and not (type(start) is int and 0 <= start < config.vocab_size):
        raise ValueError(f"its start_token is {start!r}, but must be an id below {config.vocab_size}, or null")
    return config, start


def require_cache(session: Any, config: TransformerConfig) -> None:
    """Raise ValueError unless a graph has the inputs and outputs of a model of this config with key-values."""
    inputs = {node.name: node.shape for node in session.get_inputs()}
    if f"{PAST}.0.key" not in inputs:
        raise ValueError("it has no key-value cache; give model_kv.onnx, or export onnx-kv")
    names = [node.name for node in session.get_outputs()]
    # Its stated layers may be any number: compared before they are listed.
    stated = len(names) == 1 + 2 * config.n_layers
    wanted = [*INPUTS, *cache_names(PAST, config.n_layers)] if stated else []
    if list(inputs) != wanted or names != ["logits", *cache_names(PRESENT, config.n_layers)]:
        raise ValueError("its inputs and outputs are not those of the model that its metadata states; export it again")
    sizes = [shape for name, shape in inputs.items() if name.startswith(PAST)]
    if any([shape[1], shape[3]] != [config.kv_heads, config.head_size] for shape in sizes):
        raise ValueError("its key-values are not of the size that its metadata states")


class OnnxEngine:
    """A [decoding engine][tinytf.generation.decoding.Engine] over a graph with key-values.

    Its rows are one batch, padded on the left. Where the graph rounds all activations of a tensor in steps of one size,
    rows would change each other's: each is then a batch of its own, and so many at a time are run as there are threads.

    Args:
        path: a ``.onnx`` file that tinytf exported, one of ``model_kv*.onnx``.
        threads: of onnxruntime.

    Raises:
        UserError: if the file cannot be run, has no cache, or does not state its config.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        require_onnx(path)
        self.path = path
        try:
            operators = require_own_kind(path)
            session = open_session(path, threads)
            config, self.start_token = stated_model(session)
            require_cache(session, config)
        except Exception as error:  # The binding has its own classes for each kind of broken file.
            raise UserError(f"--model {path}: {printable(' '.join(str(error).split()))}") from error
        self.vocab_size, self.max_seq_len = config.vocab_size, config.max_seq_len
        self._graph, self._one_batch = CachedGraph(session), SHARED_SCALE not in operators
        self._groups: list[Group] = []
        self._pool = ThreadPoolExecutor(threads) if threads > 1 and not self._one_batch else None

    def prefill(self, tokens: Tensor) -> Tensor:
        """See `Engine`."""
        self._groups = [Group.empty(self._graph, len(rows)) for rows in self._batches(tokens)]
        return self._read(tokens)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Engine`."""
        return self._read(tokens[:, None])

    def join(self, tokens: Tensor, every: bool = False) -> Tensor:
        """See `Engine`."""
        logits, group = self._run(Group.empty(self._graph, 1), tokens[None])
        together = self._one_batch and self._groups
        self._groups = [self._groups[0].join(group)] if together else [*self._groups, group]
        return logits[0] if every else logits[0, -1:]

    def keep(self, rows: Sequence[int]) -> None:
        """See `Engine`."""
        if rows and self._one_batch:
            self._groups = [self._groups[0].keep(rows)]
        else:
            self._groups = [self._groups[row] for row in rows]

    def _batches(self, tokens: Tensor) -> Sequence[Tensor]:
        return [tokens] if self._one_batch else torch.split(tokens, 1)

    def _read(self, tokens: Tensor) -> Tensor:
        """The last logits of every row, ``[batch, vocab_size]``, after its new ids ``[batch, seq]``."""
        if len(self._groups) == 1:  # What splits and joins rows takes 40 us of a step, whose graph takes 270.
            logits, self._groups[0] = self._run(self._groups[0], tokens)
            return logits[:, -1]
        run = map if self._pool is None else self._pool.map
        results = list(run(self._run, self._groups, self._batches(tokens)))
        self._groups = [group for _, group in results]
        return torch.cat([logits[:, -1] for logits, _ in results])

    def _run(self, group: Group, tokens: Tensor) -> tuple[Tensor, Group]:
        length = group.length + tokens.shape[1]
        if length > self.max_seq_len:
            raise ValueError(f"a sequence of {length} tokens is past max_seq_len {self.max_seq_len}")
        try:
            logits, group = group.read(tokens.contiguous())
        except Exception as error:
            raise UserError(
                f"--model {self.path}: onnxruntime cannot run it ({' '.join(str(error).split())})"
            ) from error
        if logits.shape != (*tokens.shape, self.vocab_size) or logits.dtype != torch.float32:
            raise UserError(f"--model {self.path}: its logits are not those of a vocabulary of {self.vocab_size}")
        return logits, group


def require_onnx(path: Path) -> None:
    """Raise UserError if there is nothing to run, or nothing to run it with."""
    if path.suffix != ".onnx":
        raise UserError(f"--model {path}: give a .onnx file with key-values, such as model_kv.onnx")
    open_user_file(path, what="--model", limit=PROTOBUF_LIMIT).close()
    missing = [name for name in ("onnxruntime", "onnx") if find_spec(name) is None]
    if missing:
        raise UserError(f"--model {path}: running it needs {' and '.join(missing)}: pip install 'tinytf[export]'")


def bundled_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the folder of a model; UserError if there is none."""
    return tokenizer_from_file(path.parent / TOKENIZER)


def bundled_chat_template(path: Path) -> str | None:
    """The chat template in the folder of a model, or None if there is none."""
    template = path.parent / CHAT_TEMPLATE
    return read_text(template, what="chat template", limit=MAX_TEMPLATE) if template.exists() else None
