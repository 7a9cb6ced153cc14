"""The token ids that every artifact is compared on: held-out text, every row of the vocabulary, many shapes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinytf.data.build import prepare
from tinytf.data.config import CorpusConfig
from tinytf.data.sources.builtin import BUILTIN
from tinytf.data.tokenizer import encode
from tinytf.errors import UserError
from tinytf.model import TransformerConfig
from tinytf.utils.files import read_bytes, read_text, shorten
from tinytf.weights.checkpoint import LoadedModel

# Some seconds of work. A difference in loss below 1e-3 is not measurable on so few, and no threshold asks for it.
MAX_TOKENS = 4096
MOST_IDS = 8192
"""Of a vocabulary, as inputs. All 49,152 of SmolLM2-135M would take 13 TFLOP, minutes on a core, for each format; where
a format's file can be read, its table of embeddings is compared as it stands."""

MOST_TOKENS = 8192
"""Of a case, unless one row has more. Of SmolLM2-135M's context of 8,192, five half rows had 4 GB of logits."""

MAX_TEXT = 2**30
"""Bytes of --text, of which `MAX_TOKENS` tokens are used."""

EXPORT_SHAPE = (2, 3)
"""Batch and length of the example that exporters trace. No case has it: a graph that froze its sizes must fail."""


def example_tokens() -> Tensor:
    """Token ids of the traced shape."""
    return torch.zeros(EXPORT_SHAPE, dtype=torch.long)


def too_short_to_trace(config: TransformerConfig) -> str | None:
    """Why a model cannot be traced: its context is shorter than the example. None if it can."""
    limit, length = config.max_seq_len, EXPORT_SHAPE[1]
    return None if limit >= length else f"it is traced with {length} tokens, and max_seq_len is {limit}"


@dataclass(frozen=True)
class Case:
    """Sequences ``[batch, seq]``, and the lengths of the chunks they are fed in (None: at once)."""

    tokens: Tensor
    chunks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Evaluation:
    """Held-out windows.

    Args:
        windows: ``[windows, length + 1]`` token ids; each position's target is the id after it.
        source: where the text came from, in words.
    """

    windows: Tensor
    source: str

    @classmethod
    def from_ids(cls, ids: np.ndarray, source: str, max_seq_len: int, max_tokens: int = MAX_TOKENS) -> Evaluation:
        """Windows of the full context, evenly spread over the ids, about ``max_tokens`` in all.

        Raises:
            UserError: if there are fewer than two ids.
        """
        if len(ids) < 2:
            raise UserError(f"{source}: {len(ids)} token ids are too few to compare anything on; give --text FILE")
        length = min(max_seq_len, len(ids) - 1)
        count = max(1, min(max_tokens // length, (len(ids) - 1) // length))
        starts = np.linspace(0, len(ids) - 1 - length, count).astype(np.int64)
        rows = np.stack([np.asarray(ids[start : start + length + 1], dtype=np.int64) for start in starts])
        return cls(torch.from_numpy(rows), source)

    @property
    def tokens(self) -> int:
        """Positions with a target."""
        return self.windows.shape[0] * (self.windows.shape[1] - 1)

    @property
    def sha256(self) -> str:
        """Of the token ids, in hex: the same on every platform."""
        return hashlib.sha256(self.windows.numpy().astype("<i8").tobytes()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the windows as a ``.npy`` file of int32."""
        np.save(path, self.windows.numpy().astype(np.int32), allow_pickle=False)

    @classmethod
    def load(cls, path: Path, source: str, config: TransformerConfig) -> Evaluation:
        """Read what `save` wrote for a model; UserError if the file holds anything else."""
        # Not np.load: it makes room for the size that a header states before it looks at the file, and opens archives.
        try:
            limit = 16 * (MAX_TOKENS + config.max_seq_len)
            content = io.BytesIO(read_bytes(path, what="evaluation set", limit=limit))
            if np.lib.format.read_magic(content) != (1, 0):
                raise ValueError("it is not an array of this version")
            shape, _, dtype = np.lib.format.read_array_header_1_0(content)
            windows: Any = np.frombuffer(content.read(), dtype).reshape(shape)
        except UserError:
            raise
        except Exception as error:  # numpy tokenizes the header as Python, and fails as that does.
            raise UserError(f"evaluation set {path}: {' '.join(str(error).split())}") from error
        if windows.dtype != np.int32 or windows.ndim != 2 or not 1 < windows.shape[1] <= config.max_seq_len + 1:
            raise UserError(f"evaluation set {path}: it does not hold windows of up to {config.max_seq_len} token ids")
        if not len(windows) or windows.min() < 0 or windows.max() >= config.vocab_size:
            raise UserError(f"evaluation set {path}: it holds ids outside of the vocabulary of {config.vocab_size}")
        return cls(torch.from_numpy(windows.astype(np.int64)), source)

    def passage(self, start: int, length: int) -> Tensor:
        """That many held-out ids from the windows laid end to end, starting over at the end."""
        flat = self.windows[:, :-1].flatten()
        return flat[torch.arange(start, start + length) % len(flat)]

    def batch(self, batch_size: int, length: int) -> Tensor:
        """Different passages as ``[batch_size, length]``."""
        return torch.stack([self.passage(row * (length + 7), length) for row in range(batch_size)])


def shapes(evaluation: Evaluation, max_seq_len: int) -> Iterator[Case]:
    """Batches of 1 to 8, lengths of 1 to the whole context."""
    half = max_seq_len // 2 + 1
    for batch_size, length in ((1, 1), (1, max_seq_len), (8, 19), (5, half), (3, 2), (2, max_seq_len), (1, 7)):
        length = min(length, max_seq_len)
        if (batch_size, length) != EXPORT_SHAPE:
            yield Case(evaluation.batch(at_most(batch_size, length), length))


def chunked(evaluation: Evaluation, max_seq_len: int) -> Iterator[Case]:
    """Prefill in one and in several chunks, decode by single tokens, both up to the last position."""
    tail = min(16, max_seq_len - 1)
    half = max_seq_len // 2
    for batch_size, plan in (
        (1, (max_seq_len - tail, *[1] * tail)),
        (1, (half, max_seq_len - half)),
        (2, (1, max_seq_len - 1)),
        (3, (4, *[1] * 6)),
        (4, (3, 1, 5, 1, 1)),
    ):
        chunks = tuple(chunk for chunk in plan if chunk > 0)
        if sum(chunks) <= max_seq_len and (batch_size, sum(chunks)) != EXPORT_SHAPE:
            yield Case(evaluation.batch(at_most(batch_size, sum(chunks)), sum(chunks)), chunks)


def at_most(batch_size: int, length: int) -> int:
    """Of so many rows of a length, those of one case; 1 at least."""
    return max(1, min(batch_size, MOST_TOKENS // length))


def vocabulary(vocab_size: int, max_seq_len: int) -> Iterator[Case]:
    """Every id once as an input, of large vocabularies `MOST_IDS`, in a fixed shuffled order, in rows of at most 64."""
    # Held-out text may never read a row of the table; one that was zeroed moved the logits it reaches by 3.4.
    ids = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(0))[:MOST_IDS]
    length = min(64, max_seq_len, len(ids))
    whole = len(ids) // length * length
    for rows in torch.split(ids[:whole].view(-1, length), 4):
        yield Case(rows)
    if whole < len(ids):
        yield Case(ids[whole:][None])


def held_out(evaluation: Evaluation) -> Iterator[tuple[Case, Tensor]]:
    """Windows two at a time, with the targets of their positions."""
    for rows in torch.split(evaluation.windows, at_most(2, evaluation.windows.shape[1] - 1)):
        yield Case(rows[:, :-1].contiguous()), rows[:, 1:]


ADVICE = "give held-out text with --text FILE"


def held_out_text(loaded: LoadedModel, file: Path | None, *, own: bool) -> Evaluation:
    """The windows to compare on.

    Args:
        file: of text; None for the validation split of the training.
        own: whether the checkpoint is of the user's own runs. The paths and addresses in another one are not opened.

    Raises:
        UserError: if the file cannot be read or encoded, or the validation split is not the one of training.
    """
    if file is None:
        return from_validation_split(loaded, own)
    text = read_text(file, what="--text", limit=MAX_TEXT)
    try:
        ids = np.array(encode(loaded.tokenizer, text), dtype=np.int64)
    except UserError as error:
        raise UserError(f"--text {file}: {error}") from error
    return Evaluation.from_ids(ids, f"file {file.name}", loaded.model.config.max_seq_len)


def from_validation_split(loaded: LoadedModel, own: bool) -> Evaluation:
    """Rebuilt, or found in the cache, with the checkpoint's tokenizer."""
    stated = loaded.entry.get("config", {}).get("data", {})
    settings = {field.name: stated[field.name] for field in fields(CorpusConfig) if field.name in stated}
    if "corpus" not in settings:
        raise UserError(f"the checkpoint does not say what text it was trained on: {ADVICE}")
    if not own:
        settings.pop("cache_dir", None)
        named = [settings.get(key) for key in ("corpus", "val_corpus", "test_corpus")]
        foreign = [str(corpus) for corpus in named if corpus is not None and corpus not in BUILTIN]
        if foreign:
            raise UserError(
                f"the checkpoint is not of a run below --root, so {shorten(foreign[0])} is not opened because it says "
                f"so: {ADVICE}"
            )
    try:
        prepared = prepare(CorpusConfig(**settings), loaded.tokenizer, loaded.entry.get("data"), loaded.chat_template)
    except UserError as error:
        raise UserError(f"the text it was trained on cannot be had ({error}): {ADVICE}") from error
    trained_on, found = loaded.entry.get("data", {}), prepared.fingerprint
    if any(trained_on.get(key) != found[key] for key in ("sha256", "split")):
        raise UserError(
            f"corpus {settings['corpus']} has changed since training, so that its validation part may have been "
            f"trained on: {ADVICE}"
        )
    source = f"validation split of {settings.get('val_corpus') or settings['corpus']}"
    return Evaluation.from_ids(prepared.store.split("val"), source, loaded.model.config.max_seq_len)
