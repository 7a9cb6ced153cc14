"""The network: a decoder-only transformer in the Qwen3 layout (Llama's if ``qk_norm`` is off).

Parameter names are those of ``transformers``' Qwen3 and Llama, so that exported weights need no mapping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinytf.model.config import RopeScaling, TransformerConfig

EMBEDDING_STD = 0.2
"""Ten times GPT-2's: the blocks' first updates are then small compared with the token they are added to."""


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians per position of each pair of features (Su et al. 2021, arXiv:2104.09864), ``[head_dim / 2]``."""
    frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None:
        return frequency
    if scaling.rope_type == "linear":
        return frequency / scaling.factor
    # Llama 3.1's: by how many turns a pair makes within the original context.
    turns = scaling.original_max_seq_len * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def rotary_tables(config: TransformerConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles, ``[max_seq_len, head_size]``."""
    frequency = rotary_frequencies(config.head_size, config.rope_theta, config.rope_scaling)
    angle = torch.outer(torch.arange(config.max_seq_len, dtype=torch.float32), frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair ``(x[i], x[i + head_dim / 2])`` by its position's angle; x is ``[..., seq, head_dim]``.

    The half-rotation layout of Llama and Qwen; the paper's pairs neighbors.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def causal_mask(past: int, total: int, device: torch.device) -> Tensor:
    """True if the query in row i (position past + i) may attend to the key in column j: ``[total - past, total]``."""
    position = torch.arange(total, device=device)
    return position[None, :] <= position[past:, None]


def document_mask(positions: Tensor) -> Tensor:
    """`causal_mask` inside of each document of a row, ``[batch, 1, seq, seq]``; positions are ``[batch, seq]``."""
    document = (positions == 0).cumsum(-1)
    same = document[:, :, None] == document[:, None, :]
    return (same & causal_mask(0, positions.shape[1], positions.device))[:, None]


class KVCache:
    """Keys and values of every layer, each ``[batch, n_kv_heads, past, head_dim]``.

    It is functional: appending makes new tensors and writes into none, so the same code traces and exports with
    ``past`` as a dynamic size, 0 included.

    Args:
        padding: of rows that do not begin in the first column, by how many columns each is late, ``[batch]``. None if
            all do.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], padding: Tensor | None = None) -> None:
        self.keys = keys
        self.values = values
        self.padding = padding

    @classmethod
    def empty(
        cls,
        config: TransformerConfig,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        """A cache of no tokens."""

        def no_tokens() -> list[Tensor]:
            # One tensor per layer: an exporter merges inputs that share one object.
            shape = (batch_size, config.kv_heads, 0, config.head_size)
            return [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]

        return cls(no_tokens(), no_tokens())

    @property
    def length(self) -> int:
        """Tokens in the cache. Read it before the first layer appends, or after the last has."""
        return self.keys[0].shape[2]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's new keys and values; returns all of that layer's."""
        self.keys[layer] = torch.cat((self.keys[layer], keys), dim=2)
        self.values[layer] = torch.cat((self.values[layer], values), dim=2)
        return self.keys[layer], self.values[layer]

    def join(self, other: KVCache) -> KVCache:
        """The rows of both, in this order; the shorter ones are padded on the left, so that their last tokens align."""
        total = max(self.length, other.length)
        caches = (self, other)

        def rows(tensors: Iterable[Tensor]) -> Tensor:
            return torch.cat([F.pad(tensor, (0, 0, total - tensor.shape[2], 0)) for tensor in tensors])

        return KVCache(
            [rows(keys) for keys in zip(self.keys, other.keys, strict=True)],
            [rows(values) for values in zip(self.values, other.values, strict=True)],
            _padding(torch.cat([cache.late() + total - cache.length for cache in caches])),
        )

    def keep(self, rows: Tensor) -> KVCache:
        """These rows alone, ``[rows]`` of their numbers, without the columns in which none of them has a token."""
        late = self.late()[rows]
        first = int(late.min()) if len(late) else self.length
        return KVCache(
            [keys[rows, :, first:] for keys in self.keys],
            [values[rows, :, first:] for values in self.values],
            _padding(late - first),
        )

    def late(self) -> Tensor:
        """`padding`, with zeros if there is none."""
        if self.padding is not None:
            return self.padding
        return torch.zeros(self.keys[0].shape[0], dtype=torch.long, device=self.keys[0].device)


def _padding(late: Tensor) -> Tensor | None:
    return late if late.any() else None  # Without any, every row is at the same position: a smaller mask.


class Attention(nn.Module):
    """Causal grouped-query self-attention with rotary positions and, optionally, QK-norm."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_size
        self.grouped = config.kv_heads != config.n_heads
        kv_dim = config.kv_heads * config.head_size
        self.q_proj = nn.Linear(config.d_model, config.attention_dim, bias=False)
        self.k_proj = nn.Linear(config.d_model, kv_dim, bias=False)
        self.v_proj = nn.Linear(config.d_model, kv_dim, bias=False)
        self.o_proj = nn.Linear(config.attention_dim, config.d_model, bias=False)
        # Dehghani et al. 2023 (arXiv:2302.05442): bounded attention logits allow higher learning rates.
        norm = nn.RMSNorm if config.qk_norm else nn.Identity  # Identity takes any arguments, and ignores them.
        self.q_norm = norm(config.head_size, eps=config.norm_eps)
        self.k_norm = norm(config.head_size, eps=config.norm_eps)
        # An attribute, so that training can swap in a form that its hardware runs faster (training/attention.py).
        self.attend: Callable[..., Tensor] = F.scaled_dot_product_attention

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        # The tables are float32 under autocast too, and so are norm and rotation; attention wants q, k and v of one
        # type. Under bf16-true Lightning casts the tables with the weights: 2^-9 of error, at every position alike.
        q = rotate(self.q_norm(q.type_as(cos)), cos, sin).type_as(v)
        k = rotate(self.k_norm(k.type_as(cos)), cos, sin).type_as(v)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        y = self.attend(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=self.grouped)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (-1, self.head_dim)).transpose(1, 2)


class SwiGLU(nn.Module):
    """Gated feed-forward (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.ff_dim, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.ff_dim, bias=False)
        self.down_proj = nn.Linear(config.ff_dim, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """Pre-norm attention, then pre-norm feed-forward, each added to the residual stream."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin, mask, cache))
        out: Tensor = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return out


class Transformer(nn.Module):
    """Token ids in, next-token logits out; see [TransformerConfig][tinytf.model.TransformerConfig]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        # An attribute like `Attention.attend`: of hidden states and the unembedding's weights.
        self.project: Callable[[Tensor, Tensor], Tensor] = F.linear
        cos, sin = rotary_tables(config)
        # Not in checkpoints: they follow from the config.
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialize(self)

    def forward(self, tokens: Tensor, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits of every position.

        Args:
            tokens: ids, ``[batch, seq]``; with a cache, those that follow the ones in it.
            cache: these tokens' keys and values are appended to it.
            positions: of each token in its document, ``[batch, seq]``; where it is 0 a document begins, and attention
                stays inside of it. None: the whole row is one document. Not with a cache.

        Returns:
            ``[batch, seq, vocab_size]``.

        Raises:
            ValueError: past ``max_seq_len``.
        """
        return self.unembed(self.hidden(tokens, cache, positions))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        """The normed last hidden states, ``[batch, seq, d_model]``: all of `forward` but the unembedding."""
        past = 0 if cache is None else cache.length
        total = past + tokens.shape[1]
        if total > self.config.max_seq_len:
            raise ValueError(f"a sequence of {total} tokens is past max_seq_len {self.config.max_seq_len}")
        mask: Tensor | None
        if cache is not None and cache.padding is not None:
            column = torch.arange(total, device=tokens.device)
            mask = (causal_mask(past, total, tokens.device) & (column >= cache.padding[:, None, None]))[:, None]
            position = (column[past:] - cache.padding[:, None]).clamp(min=0)
            cos, sin = self.cos[position][:, None], self.sin[position][:, None]
        elif positions is None:
            # Without a cache, SDPA's own causal mask, which its fused kernels know.
            mask = None if cache is None else causal_mask(past, total, tokens.device)
            cos, sin = self.cos[past:total], self.sin[past:total]
        else:
            assert cache is None, "a cache holds one document a row"
            mask = document_mask(positions)
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = self.dropout(self.embed_tokens(tokens))
        for block in self.layers:
            x = block(x, cos, sin, mask, cache)
        out: Tensor = self.norm(x)
        return out

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states."""
        return self.project(hidden, self.unembedding)

    @property
    def unembedding(self) -> Tensor:
        """The matrix that gives logits, ``[vocab_size, d_model]``: tied, the embedding's own (arXiv:1608.05859)."""
        return self.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight


@torch.no_grad()
def initialize(model: Transformer) -> None:
    """Draw all weights anew from torch's global generator.

    - Matrices are uniform with standard deviation ``1 / sqrt(fan_in)``: the variance of what comes in goes out.
    - The matrices that write to the residual stream (``o_proj``, ``down_proj``) are zero: each block starts as the
      identity, so depth does not change the scale of the stream (Zhang et al. 2019, arXiv:1901.09321).
    - Tied, the final norm's weight starts at ``1 / (std * d_model)``: a token's own logit would be ``std * d_model``
      (51 at 256 wide), and the model insist on repeating its input. Scaled so, that logit is 1, the others near 0, and
      the first loss near ln(vocab_size). Untied, the unembedding starts at zero, for the same loss.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            bound = (3.0 / module.in_features) ** 0.5
            nn.init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)
    nn.init.normal_(model.embed_tokens.weight, std=EMBEDDING_STD)
    if model.config.tie_embeddings:
        nn.init.constant_(model.norm.weight, 1.0 / (EMBEDDING_STD * model.config.d_model))
    else:
        nn.init.zeros_(model.lm_head.weight)
