"""The network: a decoder-only transformer in the Qwen3 layout (Llama's where ``qk_norm`` is off).

Parameter names are those of ``transformers``' Qwen3 and Llama, so that exported weights need no mapping.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinytf.model.cache import KVCache
from tinytf.model.config import TransformerConfig
from tinytf.model.init import initialize
from tinytf.model.rotary import rotary_tables, rotate


class Attention(nn.Module):
    """Causal grouped-query self-attention with rotary positions and, optionally, QK-norm."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.grouped = config.kv_heads != config.n_heads
        kv_dim = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = nn.Linear(config.d_model, kv_dim, bias=False)
        self.v_proj = nn.Linear(config.d_model, kv_dim, bias=False)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        # Dehghani et al. 2023 (arXiv:2302.05442): bounded attention logits allow higher learning rates.
        norm = nn.RMSNorm if config.qk_norm else nn.Identity
        self.q_norm = norm(config.head_dim, eps=config.norm_eps)
        self.k_norm = norm(config.head_dim, eps=config.norm_eps)
        # What training may swap for a form that its hardware runs faster.
        self.attend: Callable[..., Tensor] = F.scaled_dot_product_attention

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        # Norm and rotation run in the tables' float32 under autocast too; attention wants q, k and v of one type.
        q = rotate(self.q_norm(q.type_as(cos)), cos, sin).type_as(v)
        k = rotate(self.k_norm(k.type_as(cos)), cos, sin).type_as(v)
        if cache is not None:
            k, v = cache.grow(self.layer, k, v)
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
    """Token ids in, next-token logits out.

    Args:
        config: the shape; see [TransformerConfig][tinytf.model.TransformerConfig].
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        cos, sin = rotary_tables(config.max_seq_len, config.head_dim, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialize(self)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of every position.

        Args:
            tokens: ids, ``[batch, seq]``; with a cache, those that follow what it holds.
            cache: grows by these tokens.

        Returns:
            ``[batch, seq, vocab_size]``.

        Raises:
            ValueError: past ``max_seq_len``.
        """
        return self.unembed(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """The normed last hidden states, ``[batch, seq, d_model]``: all of `forward` but the unembedding."""
        past = 0 if cache is None else cache.length
        total = past + tokens.shape[1]
        if total > self.config.max_seq_len:
            raise ValueError(f"a sequence of {total} tokens is past max_seq_len {self.config.max_seq_len}")
        mask = None if cache is None else causal_mask(past, total, tokens.device)
        cos, sin = self.cos[past:total], self.sin[past:total]
        x = self.dropout(self.embed_tokens(tokens))
        for block in self.layers:
            x = block(x, cos, sin, mask, cache)
        out: Tensor = self.norm(x)
        return out

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, through the embedding's own weights (Press & Wolf 2017, arXiv:1608.05859)."""
        return F.linear(hidden, self.embed_tokens.weight)


def causal_mask(past: int, total: int, device: torch.device) -> Tensor:
    """True where the query at row i (position past + i) may look at the key in column j: ``[total - past, total]``."""
    position = torch.arange(total, device=device)
    return position[None, :] <= position[past:, None]
