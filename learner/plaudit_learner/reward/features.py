"""What the reward model sees of a reply: the reference policy's hidden states, pooled; the reply's shape; the prompt.

A reply's features are the same as long as the reference is: a caller may keep them until then. A row of them is the
mean state at each of a few layers, H numbers each; then the reply's shape, SHAPE_FEATURES numbers; then, for what the
reply was asked to be, the state at the prompt's last token of the deepest of those layers, H numbers.

Shapes: N replies, D features, R of them of the reply, T reply tokens, H hidden size, L layers, X shape features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from plaudit_learner.policy import Policy, PromptReply
from plaudit_learner.ranks import ALONE, Ranks, evenly
from plaudit_learner.trunk import Trunk

T = TypeVar("T")

SHAPE_FEATURES = 3

_MOST_PAIRS = 8_000_000
"""Pairs of tokens that attention weighs at once in a batch, each head's apart: 16 items of 707 tokens, or two of 2,000,
of which SmolLM2's nine heads make 0.6 GB."""


@dataclass(frozen=True)
class Encoding:
    """One reply, read by the reference policy."""

    prefix_TD: Tensor
    """Features of the reply's beginnings, a row after each token; of the whole reply only, unless asked for."""
    predicting_TH: Tensor
    """`Policy.head` makes of these the reference's logits for each reply token."""
    trunk: Trunk | None = None
    """What lies below all that learns; only if asked for."""

    @property
    def features_D(self) -> Tensor:
        """Features of the whole reply."""
        return self.prefix_TD[-1]


def encode(
    policy: Policy,
    items: Sequence[PromptReply],
    *,
    prefixes: bool = False,
    trunks: bool = False,
    batch_size: int = 16,
    ranks: Ranks = ALONE,
) -> list[Encoding]:
    """Read replies with the reference policy; in the order of `items`.

    prefixes: with the features of each beginning, for the critic.
    trunks: with what the trunk made of each, for who reads them with the policy next; 0.2 MB a reply.
    ranks: share the work, and get all of it.
    """
    return _read(policy, items, lambda each: each, prefixes=prefixes, trunks=trunks, batch_size=batch_size, ranks=ranks)


def features(policy: Policy, items: Sequence[PromptReply], *, ranks: Ranks = ALONE) -> Tensor:
    """Features (N, D) of whole replies; the rest of what is read is dropped at once, some fifty times as much.

    Raises ValueError if there are no items.
    """
    if not items:
        raise ValueError("there are no replies to read")
    return torch.stack(_read(policy, items, lambda each: each.features_D, ranks=ranks))


def _read(
    policy: Policy,
    items: Sequence[PromptReply],
    keep: Callable[[Encoding], T],
    *,
    prefixes: bool = False,
    trunks: bool = False,
    batch_size: int = 16,
    ranks: Ranks = ALONE,
) -> list[T]:
    layers = pooled_layers(policy.layers)
    found: dict[int, T] = {}
    for rows in ranks.mine(batches(items, batch_size, ranks.size)):
        reading = policy.reference_states([items[row] for row in rows], layers)
        for b, row in enumerate(rows):
            length = len(items[row].reply)
            states_LTH = reading.states_LBTH[:, b, :length]
            reply_TR = _prefixes(states_LTH, items[row].finished) if prefixes else _whole(states_LTH, items[row])
            prefix_TD = torch.cat([reply_TR, reading.prompt_LBH[-1, b].expand(len(reply_TR), -1)], dim=1)
            trunk = reading.trunks[b] if trunks else None
            found[row] = keep(Encoding(prefix_TD, reading.predicting_BTH[b, :length].clone(), trunk))
    every = ranks.union(found)
    return [every[row] for row in range(len(items))]


def pooled_layers(depth: int) -> list[int]:
    """Which hidden states are pooled: the embeddings (the words themselves), and those at a third and two thirds.

    Later ones are about the next token: with them, or with the last token's state, held-out AUC fell (measured).
    """
    return sorted({0, depth // 3, 2 * depth // 3})


def batches(items: Sequence[PromptReply], size: int, of: int = 1) -> list[list[int]]:
    """Row numbers in batches, sorted so that a batch has prompts of like length and shares equal ones.

    size: of a batch at the most; of long items fewer, down to one. of: the number of batches is a multiple of this, if
    there are enough items and none is long.
    """
    order = sorted(range(len(items)), key=lambda i: (len(items[i].prompt), items[i].prompt))
    return [part for batch in evenly(order, size, of) for part in bounded(batch, items)]


def bounded(rows: list[int], items: Sequence[PromptReply]) -> list[list[int]]:
    """The batch, or as many parts of it as memory asks for; one item is read whatever its length."""
    longest = max(len(items[row].prompt) + len(items[row].reply) for row in rows)
    most = max(1, _MOST_PAIRS // longest**2)
    return [rows[start : start + most] for start in range(0, len(rows), most)]


def _whole(states_LTH: Tensor, item: PromptReply) -> Tensor:
    shape = torch.tensor(_shape(len(item.reply), item.finished))
    return torch.cat([states_LTH.mean(dim=1).flatten(), shape])[None]


def _prefixes(states_LTH: Tensor, finished: bool) -> Tensor:
    length = states_LTH.shape[1]
    mean_LTH = states_LTH.cumsum(dim=1) / torch.arange(1, length + 1)[:, None]
    shape_TX = torch.tensor([_shape(t, finished and t == length) for t in range(1, length + 1)])
    return torch.cat([mean_LTH.transpose(0, 1).flatten(1), shape_TX], dim=1)


def _shape(length: int, finished: bool) -> list[float]:
    return [math.log(length), math.log(length) ** 2, float(finished)]
