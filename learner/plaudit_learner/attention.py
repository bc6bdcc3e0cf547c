"""Attention in which the query heads of a group read their keys and values in place.

Transformers' eager attention first copies keys and values until each query head has its own: for three heads to a group
that is two thirds of all that it moves. Here the heads of a group stand one under the other in one matrix of queries.

Shapes: B sequences, Q query heads, G groups of them (each with one head of keys and values), T tokens that are read,
S tokens that are looked at, D size of a head.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.llama.modeling_llama import eager_attention_forward

_NAME = "plaudit_grouped"


def use_grouped_attention(model: Any) -> None:
    """Let a model that was loaded with eager attention use this one, if its own does the same and nothing else.

    Transformers copies Llama's attention into the module of each model that has the same one; others (soft caps, sinks)
    have a text of their own, and keep it.
    """
    theirs = getattr(inspect.getmodule(type(model)), "eager_attention_forward", None)
    if theirs is not None and inspect.getsource(theirs) == inspect.getsource(eager_attention_forward):
        model.set_attn_implementation(_NAME)


def grouped_attention(
    module: nn.Module,
    query_BQTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers' eager_attention_forward gives (B, T, Q, D), but no weights. attention_mask is added."""
    batch, heads, tokens, size = query_BQTD.shape
    groups, seen = key_BGSD.shape[1:3]
    query_BGRD = (query_BQTD * scaling).reshape(batch, groups, -1, size)  # R: the heads of a group times T
    scores = torch.matmul(query_BGRD, key_BGSD.transpose(2, 3))
    if attention_mask is not None:
        scores = scores.view(batch, groups, -1, tokens, seen) + attention_mask[:, :, None]
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query_BQTD.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    output_BGRD = torch.matmul(weights.view(batch, groups, -1, seen), value_BGSD)
    return output_BGRD.view(batch, heads, tokens, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, grouped_attention)
AttentionMaskInterface.register(_NAME, eager_mask)
