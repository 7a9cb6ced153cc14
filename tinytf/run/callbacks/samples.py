"""Log text samples during training, with fixed prompts and a fixed seed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tinytf.data.tokenizer import encode
from tinytf.errors import UserError, require_at_least
from tinytf.generation.decoding import TransformerEngine, decode
from tinytf.generation.sampling import Sampling
from tinytf.model import Transformer
from tinytf.run.callbacks.averaging import averaged_weights
from tinytf.run.callbacks.journal import write_event

log = logging.getLogger(__name__)

PROMPT_TOKENS = 16
"""Length of the default prompt, the beginning of the validation text."""


class Samples(Callback):
    """Write ``sample`` events, whose text the trackers show too, after each Nth validation.

    It draws from a generator of its own and runs compiled blocks as they are written: training's random numbers
    and compiled code are those of a run without samples. Every process takes part, as a sharded model needs, and
    the first one writes.

    Args:
        every_n_validations: write samples after each Nth validation; 0 never does.
        prompts: the beginnings to complete; none means the beginning of the validation text, or its first prompt.
        max_new_tokens: length of a completion, in tokens.
        temperature: temperature of the sampling; 0 takes the likeliest token.
    """

    # At each validation, because 100 tokens take half a second of one core at 3 million parameters (configs/base.yaml:
    # four samples in five minutes) and 3.4 s at 54 million.
    def __init__(
        self,
        every_n_validations: int = 1,
        prompts: Sequence[str] = (),
        max_new_tokens: int = 100,
        temperature: float = 0.8,
    ) -> None:
        require_at_least(
            "tracking.samples",
            every_n_validations=(every_n_validations, 0),
            max_new_tokens=(max_new_tokens, 1),
            temperature=(temperature, 0),
        )
        if "" in prompts:
            raise UserError("tracking.samples.prompts: a prompt is empty, but a sample needs a beginning")
        self.every_n_validations = every_n_validations
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self.sampling = Sampling(temperature=temperature)
        self._prompt_ids: list[list[int]] = []
        self._validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self.every_n_validations:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "tokenizer"):
            raise UserError(
                "tracking.samples: the datamodule has no tokenizer; set tracking.samples.every_n_validations to 0"
            )
        try:
            self._prompt_ids = [encode(data.tokenizer, prompt) for prompt in self.prompts]
        except UserError as error:
            raise UserError(f"tracking.samples.prompts: {error}") from None
        if not self.prompts:
            if not hasattr(data, "split"):
                raise UserError("tracking.samples.prompts: give some, because the datamodule has no validation text")
            length = getattr(data, "first_prompt", None) or PROMPT_TOKENS
            self._prompt_ids = [[int(token) for token in data.split("val")[:length]]]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.every_n_validations or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations:
            return
        try:
            with averaged_weights(trainer, pl_module):
                texts = self._generate(trainer, pl_module.model)  # type: ignore[arg-type]
        except FloatingPointError as error:
            log.warning("step %d: no sample, %s", trainer.global_step, error)
            return
        for index, (prompt, text) in enumerate(texts):
            write_event(trainer, "sample", index=index, prompt=prompt, text=text)

    def _generate(self, trainer: Trainer, model: Transformer) -> list[tuple[str, str]]:
        """Prompts and completions, decoded."""
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        training = model.training
        try:
            with torch.compiler.set_stance("force_eager"):
                drawn = [self._complete(model, prompt) for prompt in self._prompt_ids]
        finally:
            model.train(training)
        prompts = tokenizer.decode_batch(self._prompt_ids, skip_special_tokens=False)
        texts = tokenizer.decode_batch(drawn, skip_special_tokens=False)
        return list(zip(prompts, texts, strict=True))

    def _complete(self, model: Transformer, prompt: list[int]) -> list[int]:
        stream = decode(TransformerEngine(model), prompt, self.sampling, seeds=[0])
        return [int(token) for token in islice(stream, self.max_new_tokens)]

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]
