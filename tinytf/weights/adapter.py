"""Adapters: small trained matrices beside the frozen ones of a base model (LoRA, Hu et al. 2021, arXiv:2106.09685).

A matrix W of the base becomes W + alpha / rank * B A, with A ``[rank, columns]`` drawn at random and B ``[rows, rank]``
zero at first, so that training begins at the base. Training is by the package peft; merging is the sum above.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tinytf.errors import UserError
from tinytf.model import Transformer
from tinytf.utils.files import shorten

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Target, ...] = get_args(Target)

A, B = "lora_A.weight", "lora_B.weight"
"""How checkpoints name them, after the name of the matrix: as peft's own files do, after ``base_model.model.``."""

OF_PEFT = ".default.weight"
"""Within peft's modules an adapter has a name; ours is the only one."""


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter (LoRA) beside a frozen base; the extra finetune.

    Args:
        rank: rank of what is added to a matrix: an adapter's size and strength.
        alpha: what is added is multiplied by alpha / rank.
        dropout: probability on the input of each adapter, in [0, 1).
        targets: the matrices of each block that get one.
    """

    # All matrices, and alpha twice the rank: as good as full fine-tuning on small data sets, where attention's alone
    # are not (Dettmers et al. 2023, arXiv:2305.14314, figure 2; Biderman et al. 2024, arXiv:2405.09673).
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Sequence[Target] = TARGETS

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "dropout"):
            value, kind = getattr(self, name), int if name == "rank" else (int, float)
            if not isinstance(value, kind) or isinstance(value, bool):  # A checkpoint may have anything there.
                raise UserError(f"model.adapter.{name} is {value!r}, but must be a number")
        if self.rank < 1:
            raise UserError(f"model.adapter.rank is {self.rank}, but must be at least 1")
        if not 0 < self.alpha <= sys.float_info.max:
            raise UserError(f"model.adapter.alpha is {shorten(self.alpha, 40)}, but must be above 0 and finite")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.adapter.dropout is {self.dropout}, but must be in [0, 1)")
        stated = self.targets if isinstance(self.targets, (list, tuple)) else ()
        if not stated or any(target not in TARGETS for target in stated):
            raise UserError(f"model.adapter.targets is {self.targets!r}, but must be some of {', '.join(TARGETS)}")
        object.__setattr__(self, "targets", tuple(target for target in TARGETS if target in stated))

    @classmethod
    def from_mapping(cls, values: Any) -> AdapterConfig:
        """As a config or a checkpoint has it.

        Raises:
            UserError: if a value cannot be used.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"model.adapter is {shorten(repr(values), 60)}, but expected keys and values")
        for key in values:
            if key not in cls.__dataclass_fields__:
                raise UserError(f"model.adapter has the key {shorten(repr(key), 60)}, which it does not know")
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """In plain types."""
        return {**asdict(self), "targets": list(self.targets)}


def require_peft() -> None:
    """Raise UserError if the package is not installed."""
    if find_spec("peft") is None:
        raise UserError("model.adapter needs the extra: pip install 'tinytf[finetune]'")


def refuse_adapter_with(*, base: bool, freeze: Sequence[str] | None) -> None:
    """Raise UserError where an adapter has no base, or where more is to be frozen than all of it."""
    if not base:
        raise UserError(
            "model.adapter is trained beside the frozen weights of a pretrained model: give that as model.base, or "
            "train the whole model, without model.adapter"
        )
    if freeze:
        raise UserError(
            "model.freeze: under model.adapter all of the base is frozen; leave freeze out, and choose what is trained "
            "by model.adapter.targets"
        )


def targeted(model: Transformer, config: AdapterConfig) -> Iterator[tuple[str, nn.Linear]]:
    """The matrices of a model without adapters that get one, by name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in config.targets:
            yield name, module


def adapter_shapes(model: Transformer, config: AdapterConfig) -> dict[str, list[int]]:
    """The tensors that an adapter of a model consists of, by their names in checkpoints."""
    found = {}
    for name, module in targeted(model, config):
        found[f"{name}.{A}"] = [config.rank, module.in_features]
        found[f"{name}.{B}"] = [module.out_features, config.rank]
    return found


# -- training --------------------------------------------------------------------------------------------------


def attach_adapter(model: Transformer, config: AdapterConfig) -> None:
    """Freeze a model and put an adapter into it; its ``state_dict`` is that of the adapter alone from then on.

    Raises:
        UserError: if peft is not installed.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model  # 7 s, transformers and accelerate with it.

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type] # It divides by the rank.
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
    )
    inject_adapter_in_model(settings, model)
    model.register_state_dict_post_hook(_keep_adapter)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_pre_hook(_rename_for_peft)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_post_hook(_expect_adapter)  # type: ignore[no-untyped-call]


# Functions and no methods: callbacks that average weights copy the module with its hooks.
def _keep_adapter(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        tensor = state.pop(key)
        if ".lora_" in key:
            state[key.replace(OF_PEFT, ".weight")] = tensor


def _rename_for_peft(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix) and key.endswith((A, B))]:
        state[key.removesuffix(".weight") + OF_PEFT] = state.pop(key)


def _expect_adapter(module: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if ".lora_" in key]


# -- merging ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def merge_adapter(model: Transformer, config: AdapterConfig, weights: Mapping[str, Tensor]) -> None:
    """Add an adapter's product to each matrix, in float32: peft's own ``merge``, without importing it.

    Args:
        model: the base, on the CPU and in float32.
        config: the adapter's.
        weights: the adapter's tensors, by their names in checkpoints without ``model.``.
    """
    for name, module in targeted(model, config):
        a, b = weights[f"{name}.{A}"].float(), weights[f"{name}.{B}"].float()
        module.weight += (b @ a) * (config.alpha / config.rank)
