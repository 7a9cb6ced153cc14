"""A checkpoint as a model to use: what `tinytf.load` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinytf.errors import UserError
from tinytf.generation.decoding import TransformerEngine
from tinytf.generation.generator import TextGenerator, available_device
from tinytf.model import Transformer
from tinytf.run.directory import is_own, resolve_checkpoint
from tinytf.weights.checkpoint import load_model


@dataclass(frozen=True, repr=False, kw_only=True)
class TrainedModel(TextGenerator):
    """A checkpoint's model and tokenizer, and what the file says of itself.

    Args:
        engine: decodes with ``model`` and a key-value cache.
        tokenizer: a Hugging Face ``tokenizers.Tokenizer``.
        start_token, chat_template: see `TextGenerator`.
        model: the network, in eval mode and float32; ids ``[batch, seq]`` in, logits ``[batch, seq, vocab_size]`` out.
        entry: resolved config, data, provenance: the checkpoint's ``tinytf`` entry.
        step: optimizer steps it was trained for.
    """

    model: Transformer
    entry: dict[str, Any]
    step: int

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"<{self.entry['config'].get('name', 'model')} after {self.step:,} steps: "
            f"{config.parameter_count:,} parameters, {config.vocab_size:,} tokens, context {config.max_seq_len}>"
        )


def load_checkpoint(
    ckpt_path: str | Path, name: str | None, root: str | Path, device: str, base: str | None = None
) -> TrainedModel:
    """See `tinytf.load`, which is this with its defaults.

    Raises:
        UserError: if there is no such checkpoint or device, or the file is damaged or not tinytf's.
    """
    path = _find(ckpt_path, name, root)
    loaded = load_model(path, base, own=is_own(path, Path(root)))
    model = loaded.model.to(available_device(device))
    return TrainedModel(
        engine=TransformerEngine(model),
        tokenizer=loaded.tokenizer,
        start_token=loaded.start_token,
        chat_template=loaded.chat_template,
        model=model,
        entry=loaded.entry,
        step=loaded.step,
    )


def _find(ckpt_path: str | Path, name: str | None, root: str | Path) -> Path:
    """The file; a text may be ``best`` or ``last``, which a `Path` never means."""
    try:
        return resolve_checkpoint(ckpt_path, name, root)
    except UserError as error:
        # Python has no flags.
        raise UserError(str(error).removeprefix("--ckpt_path ")) from None
