"""The sizes of a transformer: the numbers that fix its parameters, checked together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints


class ConfigurationError(ValueError):
    """Numbers that make no transformer.

    Args:
        problems: one line each.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that decides the parameters of a [Transformer][tinytf.model.Transformer].

    Args:
        vocab_size: number of token ids.
        d_model: width of the residual stream, in features.
        n_heads: query heads; each is d_model / n_heads wide.
        n_layers: transformer blocks, one after the other.
        n_kv_heads: key and value heads (grouped-query attention); null means n_heads.
        d_ff: width inside the SwiGLU feed-forward; null means 8/3 of d_model, rounded up to a multiple of 64.
        dropout: probability on each residual branch and on the embedding, in [0, 1). Attention weights are not dropped.
        max_seq_len: the longest context, in tokens; data.seq_len may be shorter.
        qk_norm: RMSNorm over each head of queries and keys before the rotation (the Qwen3 layout; Llama's without).
        rope_theta: base of the rotary position frequencies.
        norm_eps: epsilon of every RMSNorm.

    Raises:
        ConfigurationError: if the numbers do not fit together; each of its problems names them.
    """

    vocab_size: int
    d_model: int = 256
    n_heads: int = 4
    n_layers: int = 4
    n_kv_heads: int | None = None
    d_ff: int | None = None
    dropout: float = 0.0
    max_seq_len: int = 256
    qk_norm: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
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
        stated = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        kinds = {name: kind | int if kind is float else kind for name, kind in get_type_hints(cls).items()}
        wrong = [
            f"{name} is {value!r}, but must be {getattr(kinds[name], '__name__', kinds[name])}"
            for name, value in stated.items()
            # True is an int to Python, and no number of heads.
            if not isinstance(value, kinds[name]) or (isinstance(value, bool) and kinds[name] is not bool)
        ]
        if wrong:
            raise ConfigurationError(wrong)
        return cls(**stated)

    def _too_small(self) -> Iterator[str]:
        for name in ("vocab_size", "d_model", "n_heads", "n_layers", "max_seq_len", "n_kv_heads", "d_ff"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name} is {value}, but must be at least 1"

    def _out_of_range(self) -> Iterator[str]:
        if not 0.0 <= self.dropout < 1.0:
            yield f"dropout is {self.dropout}, but must be in [0, 1)"
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                yield f"{name} is {getattr(self, name)}, but must be positive"

    def _misfits(self) -> Iterator[str]:
        if self.d_model % self.n_heads:
            yield f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}"
        elif self.head_dim % 2:
            yield (
                f"d_model {self.d_model} / n_heads {self.n_heads} gives heads of {self.head_dim}, "
                "but rotary positions turn pairs: the head size must be even"
            )
        if self.n_heads % self.kv_heads:
            yield f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.kv_heads}"

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

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
        """Parameters of the whole model, the tied embedding counted once."""
        d, kv_dim = self.d_model, self.kv_heads * self.head_dim
        attention = 2 * d * d + 2 * d * kv_dim + (2 * self.head_dim if self.qk_norm else 0)
        block = attention + 3 * d * self.ff_dim + 2 * d
        return self.vocab_size * d + self.n_layers * block + d

    def flops_per_token(self, seq_len: int) -> float:
        """FLOPs of forward and backward for one token: ``6 N + 12 n_layers d_model seq_len``.

        Two for each parameter's multiply and add, three times (forward, and backward twice); the second term is
        attention's two products over the whole sequence, causal or not, as the paper counts. The tied embedding is
        in N once, for the unembedding's product (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
        """
        return 6.0 * self.parameter_count + 12.0 * self.n_layers * self.d_model * seq_len
