"""The models that a server has: the one it was started with, and the other checkpoints of its run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tinytf.generation.conversation import Conversation
from tinytf.generation.decoding import TransformerEngine
from tinytf.generation.generator import TextGenerator
from tinytf.run.loading import TrainedModel
from tinytf.serve.errors import RequestError
from tinytf.serve.scheduler import Scheduler

MOST_LOADED = 3
"""Models in memory at once: the default, and two that are compared with each other."""


@dataclass(frozen=True)
class ModelSource:
    """A model that can be served.

    Args:
        name: its id in the API; never a path.
        load: reads it from disk.
        created: Unix time.
        step, val_loss: of the checkpoint; None where unknown.
    """

    name: str
    load: Callable[[], TextGenerator]
    created: int
    step: int | None = None
    val_loss: float | None = None


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory and its scheduler.

    Args:
        facts: what `tinytf inspect` would say of it, as label and text.
    """

    name: str
    generator: TextGenerator
    scheduler: Scheduler
    facts: Mapping[str, str]
    pieces: dict[int, str] = field(default_factory=dict)

    @cached_property
    def conversation(self) -> Conversation | None:
        """By the model's chat template; None without one. UserError if conversations cannot go by it."""
        template = self.generator.chat_template
        return None if template is None else Conversation(template, self.generator.tokenizer)

    def piece(self, token: int) -> str:
        """A token's text in the middle of a text; a part of a character is a replacement character."""
        if token not in self.pieces:
            # Twice: decoders of SentencePiece's kind leave out the space of a text's first token.
            decode = self.generator.tokenizer.decode
            once = decode([token], skip_special_tokens=False)
            self.pieces[token] = decode([token, token], skip_special_tokens=False)[len(once) :]
        return self.pieces[token]


class Models:
    """By id; loaded when they are first asked for.

    Args:
        sources: the first one is the default, and stays loaded.
        facts: of a loaded model.
        max_batch, max_queue: of each model's scheduler.
    """

    def __init__(
        self,
        sources: list[ModelSource],
        facts: Callable[[TextGenerator], Mapping[str, str]],
        max_batch: int,
        max_queue: int,
    ) -> None:
        self.sources = {source.name: source for source in sources}
        self.default = sources[0].name
        self.loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._facts, self._max_batch, self._max_queue = facts, max_batch, max_queue
        self.get(None)

    def get(self, name: str | None) -> LoadedModel:
        """The model of an id, None for the default.

        Raises:
            RequestError: if there is none, or as many as may are loaded and busy.
            UserError: if its file is gone or damaged.
        """
        name = self.default if name is None else name
        if name not in self.sources:
            raise RequestError(
                "model: this server has none of that name; GET /v1/models lists those it has", 404,
                param="model", code="model_not_found",
            )  # fmt: skip
        if name not in self.loaded:
            self._make_room()
            generator = self.sources[name].load()
            scheduler = Scheduler(generator.engine, self._max_batch, self._max_queue)
            self.loaded[name] = LoadedModel(name, generator, scheduler, self._facts(generator))
        self.loaded.move_to_end(name)
        return self.loaded[name]

    def _make_room(self) -> None:
        if len(self.loaded) < MOST_LOADED:
            return
        idle = [name for name, model in self.loaded.items() if name != self.default and model.scheduler.idle]
        if not idle:
            raise RequestError(
                f"{MOST_LOADED} models are in use, and no more are held in memory: try again later, or ask for one of "
                f"{', '.join(self.loaded)}", 429, param="model", retry_after=5,
            )  # fmt: skip
        self.loaded.pop(idle[0]).scheduler.close()

    def close(self) -> None:
        """Take no more texts."""
        for model in self.loaded.values():
            model.scheduler.close()

    def describe(self) -> list[dict[str, Any]]:
        """The entries of /v1/models, the default first."""
        return [self._description(source) for source in self.sources.values()]

    def _description(self, source: ModelSource) -> dict[str, Any]:
        # All of one run: what holds of the default's vocabulary and context holds of the others'.
        default = self.loaded[self.default]
        model = self.loaded.get(source.name)
        generator = default.generator
        start = generator.encode_prompt("")
        return {
            "id": source.name,
            "object": "model",
            "created": source.created,
            "owned_by": "tinytf",
            "tinytf": {
                "step": source.step,
                "val_loss": source.val_loss,
                "default": source.name == self.default,
                "facts": dict(model.facts) if model else {},
                "max_seq_len": generator.engine.max_seq_len,
                "vocab_size": generator.engine.vocab_size,
                "chat": generator.chat_template is not None,
                "start_text": generator.tokenizer.decode(start, skip_special_tokens=False),
            },
        }


def facts_of(generator: TextGenerator) -> dict[str, str]:
    """What a model is, as labels and texts; of an exported one, what its engine knows."""
    engine = generator.engine
    facts = {"Vocabulary": f"{engine.vocab_size:,} tokens", "Context": f"{engine.max_seq_len:,} tokens"}
    if not isinstance(engine, TransformerEngine):
        return facts
    config = engine.model.config
    facts = {
        "Parameters": f"{config.parameter_count:,}",
        "Layers": str(config.n_layers),
        "Width": f"{config.d_model} (d_model)",
        "Heads": f"{config.n_heads}, {config.kv_heads} of keys and values",
        **facts,
        "Device": str(engine.model.cos.device),
    }
    if isinstance(generator, TrainedModel):
        run, provenance = generator.entry["config"], generator.entry.get("provenance") or {}
        facts = {
            "Steps": f"{generator.step:,}",
            **facts,
            "Corpus": str((run.get("data") or {}).get("corpus", "unknown")),
            "Trained": str(provenance.get("time", "unknown")),
        }
    return facts
