"""What the reward model sees of a reply: the reference policy's hidden states, pooled, and the reply's shape.

The reference never changes, so neither do the features of a reply: a caller may keep them for ever.

Shapes: N replies, D features, T reply tokens, H hidden size, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit_learner.policy import Policy, PromptReply

SHAPE_FEATURES = 3


@dataclass(frozen=True)
class Encoding:
    """One reply, read by the reference policy."""

    features_D: Tensor
    """The mean state at each of a few layers, H numbers each; then the reply's shape, SHAPE_FEATURES numbers."""
    predicting_TH: Tensor
    """`Policy.head` makes of these the reference's logits for each reply token."""


def encode(policy: Policy, items: Sequence[PromptReply], *, batch_size: int = 16) -> list[Encoding]:
    """Read replies with the reference policy; in the order of `items`."""
    layers = pooled_layers(policy.layers)
    encodings: list[Encoding | None] = [None] * len(items)
    for rows in batches(items, batch_size):
        reading = policy.reference_states([items[row] for row in rows], layers)
        for b, row in enumerate(rows):
            length = len(items[row].reply)
            states_LTH = reading.states_LBTH[:, b, :length]
            shape = torch.tensor(_shape(length, items[row].finished))
            features_D = torch.cat([states_LTH.mean(dim=1).flatten(), shape])
            encodings[row] = Encoding(features_D, reading.predicting_BTH[b, :length].clone())
    return [encoding for encoding in encodings if encoding is not None]


def pooled_layers(depth: int) -> list[int]:
    """Which hidden states are pooled: the embeddings (the words themselves), and those at a third and two thirds.

    Later ones are about the next token: with them, or with the last token's state, held-out AUC fell (measured).
    """
    return sorted({0, depth // 3, 2 * depth // 3})


def batches(items: Sequence[PromptReply], size: int) -> Iterator[list[int]]:
    """Row numbers in batches, sorted so that a batch has prompts of like length and shares equal ones."""
    order = sorted(range(len(items)), key=lambda i: (len(items[i].prompt), items[i].prompt))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _shape(length: int, finished: bool) -> list[float]:
    return [math.log(length), math.log(length) ** 2, float(finished)]
