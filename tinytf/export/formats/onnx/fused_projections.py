"""The transformer written for one-token steps on a CPU: the same function, with far fewer and larger operations.

A step through a small model is mostly the cost of starting operations. So q, k and v are one product, gate and up are
one, q and k are normed and rotated together, and the square root stands where runtimes look for it when they fuse a
RMSNorm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinytf.model import Transformer
from tinytf.model.transformer import Attention, Block

Pair = tuple[Tensor, Tensor]

MASKED = torch.finfo(torch.float32).min
"""Added to a score. Not minus infinity: a query under padding has no other score, and its softmax would be NaN, which
the next layer's values carry to every query."""

NEVER = 2**40
"""A column after every other."""


class Norm(nn.Module):
    """RMSNorm as a division by a square root, the form that onnxruntime fuses; ``torch.rms_norm`` exports another."""

    def __init__(self, weight: Tensor, eps: float | None) -> None:
        super().__init__()
        self.weight = frozen(weight)
        self.eps = torch.finfo(torch.float32).eps if eps is None else eps

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def frozen(weight: Tensor) -> nn.Parameter:
    """A weight that shares memory with the model's, and is not trained."""
    return nn.Parameter(weight.detach(), requires_grad=False)


def concatenated(*linears: nn.Linear) -> nn.Parameter:
    """The weights of Linear modules as one product's, ``[in, out]``."""
    return frozen(torch.cat([linear.weight.detach() for linear in linears]).t().contiguous())


class FusedAttention(nn.Module):
    """Attention over past and new keys with one product for q, k and v.

    The scale of the scores rides on the queries' norm, or on their weights: one multiplication less.
    """

    def __init__(self, attention: Attention, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, attention.head_dim
        self.qkv = concatenated(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o = concatenated(attention.o_proj)
        q_norm, k_norm, scale = attention.q_norm, attention.k_norm, attention.head_dim**-0.5
        self.norm: Norm | None = None
        if isinstance(q_norm, nn.RMSNorm) and isinstance(k_norm, nn.RMSNorm):
            self.norm = Norm(torch.ones(attention.head_dim), q_norm.eps)
            gains = ((q_norm.weight * scale).expand(heads, 1, -1), k_norm.weight.expand(kv_heads, 1, -1))
            self.gain = frozen(torch.cat(gains))
        else:
            self.qkv.data[:, : heads * attention.head_dim] *= scale

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, past: Pair) -> tuple[Tensor, Pair]:
        heads, kv_heads = self.heads, self.kv_heads
        qkv = torch.unflatten(x @ self.qkv, -1, (heads + 2 * kv_heads, self.head_dim)).transpose(1, 2)
        qk, v = torch.split(qkv, [heads + kv_heads, kv_heads], dim=1)
        if self.norm is not None:
            qk = self.norm(qk) * self.gain
        first, second = qk.chunk(2, dim=-1)
        qk = qk * cos + torch.cat((second, first), dim=-1) * sin
        q, k = torch.split(qk, [heads, kv_heads], dim=1)
        k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        return attend(q, k, v, bias).transpose(1, 2).flatten(2) @ self.o, (k, v)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of scaled queries ``[batch, heads, new, head_dim]``; each key head serves a group of them."""
    group = q.shape[1] // k.shape[1]
    if group == 1:
        return (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
    scores = torch.unflatten(q, 1, (-1, group)) @ k.transpose(-2, -1).unsqueeze(2) + bias
    return torch.flatten(scores.softmax(-1) @ v.unsqueeze(2), 1, 2)


class FusedBlock(nn.Module):
    """A `Block` with fewer and larger matrix products, and the same outputs."""

    def __init__(self, block: Block, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.attention = FusedAttention(block.self_attn, heads, kv_heads)
        self.attention_norm = Norm(block.input_layernorm.weight, block.input_layernorm.eps)
        self.mlp_norm = Norm(block.post_attention_layernorm.weight, block.post_attention_layernorm.eps)
        self.gate_up = concatenated(block.mlp.gate_proj, block.mlp.up_proj)
        self.down = concatenated(block.mlp.down_proj)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, past: Pair) -> tuple[Tensor, Pair]:
        attended, present = self.attention(self.attention_norm(x), cos, sin, bias, past)
        x = x + attended
        gate, up = (self.mlp_norm(x) @ self.gate_up).chunk(2, dim=-1)
        return x + (gate * gate.sigmoid() * up) @ self.down, present


class FusedTransformer(nn.Module):
    """Logits and present key-values from new tokens and past key-values.

    The length is not checked: a comparison of sizes would become a condition on an exported graph's inputs. Who runs
    the graph checks it.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        config = model.config
        self.embed_tokens = model.embed_tokens
        # Tied, it is the embedding's own object, which the file then holds once.
        self.lm_head = None if config.tie_embeddings else frozen(model.lm_head.weight)
        blocks = [block for block in model.layers if isinstance(block, Block)]
        self.layers = nn.ModuleList(FusedBlock(block, config.n_heads, config.kv_heads) for block in blocks)
        self.norm = Norm(model.norm.weight, model.norm.eps)
        self.grouped = config.kv_heads != config.n_heads
        # Swapping the halves and negating one of them is swapping them under a sine of two signs.
        half = config.head_size // 2
        self.sin = frozen(torch.cat((-model.sin[:, :half], model.sin[:, half:]), dim=1))
        self.cos = frozen(model.cos)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """``past``, and the results after the logits, are key and value of layer 0, of layer 1, …

        Args:
            input_ids: ``[batch, seq]``.
            attention_mask: 0 for columns of no token, such as padding on the left, else 1, ``[batch, past + seq]``.
            position_ids: of the new tokens in their rows, ``[batch, seq]``; any of the table under a 0 of the mask.
            past: each ``[batch, kv_heads, past, head_dim]``.
        """
        position = position_ids[:, None]
        cos, sin = functional.embedding(position, self.cos), functional.embedding(position, self.sin)
        bias = self.attention_bias(attention_mask, input_ids.shape[1])
        x = self.embed_tokens(input_ids)
        presents: list[Tensor] = []
        for block, key, value in zip(self.layers, past[0::2], past[1::2], strict=True):
            x, present = block(x, cos, sin, bias, (key, value))
            presents += present
        unembedding = self.embed_tokens.weight if self.lm_head is None else self.lm_head
        return (self.norm(x) @ unembedding.t(), *presents)

    def attention_bias(self, attention_mask: Tensor, new: int) -> Tensor:
        """What is added to the scores of all layers, ``[batch, 1, new, total]``; with one more 1 if keys are shared."""
        total = attention_mask.shape[1]
        column = torch.arange(total)
        # The mask as times: a masked column comes after every query. Each operation here is paid once per token.
        time = torch.where(attention_mask == 0, NEVER, column)[:, None, None]
        bias = torch.where(time <= column[total - new :, None], 0.0, MASKED)
        return bias[:, None] if self.grouped else bias
