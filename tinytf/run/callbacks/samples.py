"""Text that the model writes while it trains, always from the same prompts and the same dice."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.data.tokenizer import encode
from tinytf.errors import UserError
from tinytf.generation.decoding import TransformerEngine, decode
from tinytf.generation.sampling import Sampling
from tinytf.model import Transformer
from tinytf.run.callbacks.journal import MetricsFile
from tinytf.run.callbacks.run_metadata import trackers
from tinytf.run.loggers.tracker import fenced
from tinytf.run.tracking_settings import SampleSettings

log = logging.getLogger(__name__)

PROMPT_TOKENS = 16
"""Length of the prompt that is taken from the validation text where none is given."""


class Samples(Callback):
    """Writes ``sample`` events, and the same text to the trackers, after each Nth validation.

    It draws from a generator of its own and runs compiled blocks as they are written: training's random numbers
    and compiled code are those of a run without samples. Every process takes part, as a sharded model needs, and
    the first one writes.
    """

    def __init__(self, settings: SampleSettings, metrics: MetricsFile) -> None:
        self.settings = settings
        self.metrics = metrics
        self._prompts: list[list[int]] = []
        self._validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        try:
            self._prompts = [encode(data.tokenizer, prompt) for prompt in self.settings.prompts]
        except UserError as error:
            raise UserError(f"tracking.samples.prompts: {error}") from None
        if "" in self.settings.prompts:
            raise UserError("tracking.samples.prompts: a prompt is empty, but a sample needs something to go on from")
        if not self._prompts:
            self._prompts = [[int(token) for token in data.split("val")[:PROMPT_TOKENS]]]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.settings.every_n_validations:
            return
        try:
            texts = self._written(trainer, pl_module.model)  # type: ignore[arg-type]
        except FloatingPointError as error:
            log.warning("step %d: no sample, %s", trainer.global_step, error)
            return
        for index, (prompt, text) in enumerate(texts):
            self.metrics.write("sample", index=index, prompt=prompt, text=text)
            if trainer.is_global_zero:
                for tracker in trackers(trainer):
                    tracker.log_text(f"sample/{index}", fenced(prompt + text), trainer.global_step)

    def _written(self, trainer: Trainer, model: Transformer) -> list[tuple[str, str]]:
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        sampling = Sampling(temperature=self.settings.temperature)
        training = model.training
        try:
            with torch.compiler.set_stance("force_eager"):
                drawn = [self._tokens(model, prompt, sampling) for prompt in self._prompts]
        finally:
            model.train(training)
        decoded: Sequence[tuple[str, str]] = [
            (tokenizer.decode(prompt, skip_special_tokens=False), tokenizer.decode(new, skip_special_tokens=False))
            for prompt, new in zip(self._prompts, drawn, strict=True)
        ]
        return list(decoded)

    def _tokens(self, model: Transformer, prompt: list[int], sampling: Sampling) -> list[int]:
        stream = decode(TransformerEngine(model), prompt, sampling, seeds=[0])
        return [int(token) for token in islice(stream, self.settings.max_new_tokens)]

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]
