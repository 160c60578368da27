"""The Wan transformer's attention for small models on CPUs: same weights, same result, less time.

Three costs of the stock processor matter when a layer takes milliseconds: rotary embeddings
written through strided views, a normalisation that falls off its fused path in mixed precision,
and queries computed against a context of a single token, over which softmax is always 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention:
    """Drop-in processor of a block's ``attn1``."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        **_: Any,
    ) -> Tensor:
        query, key, value = (
            f(hidden_states) for f in (attn.to_q, attn.to_k, attn.to_v)
        )  # each (B, L, D)
        query, key = _normalise(query, attn.norm_q), _normalise(key, attn.norm_k)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        if rotary_emb is not None:
            cos, sin = rotary_emb  # (1, L, 1, D/heads), each value twice
            sign = sin.new_tensor([-1.0, 1.0]).repeat(sin.shape[-1] // 2)
            cos, sin = cos.to(query.dtype), (sin * sign).to(query.dtype)
            query, key = (_rotate(x, cos, sin) for x in (query, key))
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


class SingleTokenCrossAttention:
    """Drop-in processor of a block's ``attn2`` for a context of one token."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        **_: Any,
    ) -> Tensor:
        if encoder_hidden_states.shape[1] != 1:
            raise ValueError(
                f"this attention reads one context token, got {encoder_hidden_states.shape[1]}"
            )
        return attn.to_out[0](attn.to_v(encoder_hidden_states)).expand_as(hidden_states)


def use_fast_attention(transformer: nn.Module) -> None:
    """Put both processors into every block of a WanTransformer3DModel."""
    for block in transformer.blocks:
        block.attn1.set_processor(SelfAttention())
        block.attn2.set_processor(SingleTokenCrossAttention())
        # Nothing computes queries and keys of a single token, so nothing would train them.
        for unused in (block.attn2.to_q, block.attn2.to_k, block.attn2.norm_q, block.attn2.norm_k):
            unused.requires_grad_(False)


def _normalise(x: Tensor, norm: nn.Module) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs: (a, b) → (a cos - b sin, b cos + a sin); the sign sits in sin."""
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, swapped, sin)
