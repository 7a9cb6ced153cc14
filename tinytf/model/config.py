"""The sizes of a transformer: the numbers that fix its parameters, checked together."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints


class ConfigurationError(ValueError):
    """Numbers that make no transformer.

    Args:
        problems: one line each.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


RopeType = Literal["linear", "llama3"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for contexts longer than those a model was first trained on.

    Args:
        rope_type: linear divides every frequency by factor (Chen et al. 2023, arXiv:2306.15595); llama3 divides the
            slow ones alone, and those between in part (Llama 3.1).
        factor: how many times longer the context becomes.
        low_freq_factor: llama3: frequencies of fewer turns than this in the original context are divided by factor.
        high_freq_factor: llama3: frequencies of more turns than this in the original context stay as they are.
        original_max_seq_len: llama3: the context before, in tokens.
    """

    rope_type: RopeType
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def problems(self) -> Iterator[str]:
        """What is wrong with the numbers, one line each."""
        if self.rope_type not in get_args(RopeType):
            yield f"rope_scaling.rope_type is {self.rope_type!r}, but must be {' or '.join(get_args(RopeType))}"
        if not self.factor >= 1:
            yield f"rope_scaling.factor is {self.factor}, but must be at least 1"
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            yield (
                f"rope_scaling.low_freq_factor is {self.low_freq_factor}, but must be above 0 and below "
                f"high_freq_factor {self.high_freq_factor}"
            )
        if self.original_max_seq_len < 1:
            yield f"rope_scaling.original_max_seq_len is {self.original_max_seq_len}, but must be at least 1"


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that decides the parameters of a [Transformer][tinytf.model.Transformer].

    Args:
        vocab_size: number of token ids.
        d_model: width of the residual stream, in features.
        n_heads: query heads of each block.
        n_layers: transformer blocks, one after the other.
        n_kv_heads: key and value heads (grouped-query attention); null means n_heads.
        head_dim: width of one head; null means d_model / n_heads.
        d_ff: width inside the SwiGLU feed-forward; null means 8/3 of d_model, rounded up to a multiple of 64.
        dropout: probability on each residual branch and on the embedding, in [0, 1). Attention weights are not dropped.
        max_seq_len: the longest context, in tokens; data.seq_len may be shorter.
        qk_norm: RMSNorm over each head of queries and keys before the rotation (the Qwen3 layout; Llama's without).
        rope_theta: base of the rotary position frequencies.
        rope_scaling: how the rotary frequencies are changed for a longer context; null leaves them.
        norm_eps: epsilon of every RMSNorm.
        tie_embeddings: let the embedding's weights be the unembedding's too; false gives that its own.

    Raises:
        ConfigurationError: if the numbers do not fit together; each of its problems names them.
    """

    vocab_size: int
    d_model: int = 256
    n_heads: int = 4
    n_layers: int = 4
    n_kv_heads: int | None = None
    head_dim: int | None = None
    d_ff: int | None = None
    dropout: float = 0.0
    max_seq_len: int = 256
    qk_norm: bool = True
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "rope_scaling", _rope_scaling(self.rope_scaling))  # Of a checkpoint it is a dict.
        found = list(self._too_small()) or list(self._misfits())
        found += self._out_of_range()
        if found:
            raise ConfigurationError(found)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TransformerConfig:
        """The config in a mapping that may hold other keys too, such as a checkpoint's entry.

        Raises:
            ConfigurationError: if a number is missing, of another type or out of range.
        """
        if "vocab_size" not in values:
            raise ConfigurationError(["vocab_size is missing"])
        scaling = {"rope_scaling": _rope_scaling(values.get("rope_scaling"))}
        return cls(**_typed(cls, {**values, **scaling}))

    def _too_small(self) -> Iterator[str]:
        for name in ("vocab_size", "d_model", "n_heads", "n_layers", "max_seq_len", "n_kv_heads", "head_dim", "d_ff"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name} is {value}, but must be at least 1"

    def _out_of_range(self) -> Iterator[str]:
        if not 0.0 <= self.dropout < 1.0:
            yield f"dropout is {self.dropout}, but must be in [0, 1)"
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if not 0 < value <= sys.float_info.max:  # JSON has 1e999, and whole numbers that no float can be.
                yield f"{name} is {value!r:.40}, but must be positive and finite"
        if self.rope_scaling is not None:
            yield from self.rope_scaling.problems()

    def _misfits(self) -> Iterator[str]:
        if self.head_dim is not None:
            if self.head_dim % 2:
                yield f"head_dim {self.head_dim} must be even: rotary positions turn pairs"
        elif self.d_model % self.n_heads:
            yield f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}"
        elif self.head_size % 2:
            yield (
                f"d_model {self.d_model} / n_heads {self.n_heads} gives heads of {self.head_size}, "
                "but rotary positions turn pairs: the head size must be even"
            )
        if self.n_heads % self.kv_heads:
            yield f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.kv_heads}"

    @property
    def head_size(self) -> int:
        """Width of one head; by default its share of the residual stream."""
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def attention_dim(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_size

    @property
    def kv_heads(self) -> int:
        """Key and value heads; by default as many as query heads."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def ff_dim(self) -> int:
        """Width inside the SwiGLU."""
        # 8/3 d_model gives SwiGLU's three matrices the parameters of a plain two-matrix FFN of 4 d_model
        # (Shazeer 2020, arXiv:2002.05202).
        return -(-8 * self.d_model // 3 // 64) * 64 if self.d_ff is None else self.d_ff

    @property
    def parameter_count(self) -> int:
        """Parameters of the whole model, a tied embedding counted once."""
        d, kv_dim = self.d_model, self.kv_heads * self.head_size
        attention = 2 * d * self.attention_dim + 2 * d * kv_dim + (2 * self.head_size if self.qk_norm else 0)
        block = attention + 3 * d * self.ff_dim + 2 * d
        tables = 1 if self.tie_embeddings else 2
        return tables * self.vocab_size * d + self.n_layers * block + d

    def flops_per_token(self, seq_len: int) -> float:
        """FLOPs of forward and backward for one token: ``6 N + 12 n_layers attention_dim seq_len``.

        Two for each parameter's multiply and add, three times (forward, and backward twice); the second term is
        attention's two products over the whole sequence, causal or not, as the paper counts. The embedding's lookup
        is no product: one table is in N, for the unembedding's (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
        """
        lookup = 0 if self.tie_embeddings else self.vocab_size * self.d_model
        return 6.0 * (self.parameter_count - lookup) + 12.0 * self.n_layers * self.attention_dim * seq_len


def _typed(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a mapping, what a dataclass has fields for.

    Raises:
        ConfigurationError: naming each value of another type than its field's.
    """
    kinds = {name: kind | int if kind is float else kind for name, kind in get_type_hints(cls).items()}
    kinds |= {"rope_type": str} if cls is RopeScaling else {}  # Its values are checked with the others.
    stated = {field.name: values[field.name] for field in fields(cls) if field.name in values}
    wrong = [
        f"{name} is {value!r}, but must be {getattr(kinds[name], '__name__', kinds[name])}"
        for name, value in stated.items()
        # True is an int to Python, and no number of heads.
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and kinds[name] is not bool)
    ]
    if wrong:
        raise ConfigurationError(wrong)
    return stated


def _rope_scaling(value: Any) -> RopeScaling | None:
    """A `RopeScaling` from itself, or from a mapping or namespace of its fields."""
    if value is None or isinstance(value, RopeScaling):
        return value
    if not isinstance(value, Mapping):
        try:
            value = vars(value)
        except TypeError:
            raise ConfigurationError([f"rope_scaling is {value!r}, but must be a mapping or null"]) from None
    try:
        stated = _typed(RopeScaling, value)
    except ConfigurationError as error:
        raise ConfigurationError([f"rope_scaling.{problem}" for problem in error.problems]) from None
    missing = [name for name in ("rope_type", "factor") if name not in stated]
    if missing:
        raise ConfigurationError([f"rope_scaling.{missing[0]} is missing"])
    return RopeScaling(**stated)
