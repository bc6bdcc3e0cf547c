"""What people say of replies, as the reward model takes it; and how it is split so that it can be judged honestly.

Reward models know a prompt again, and a person's habits. So held out means: neither the prompt of a judgement, nor one
nearly the same, nor the person who made it was seen in training. Prompts and users are dealt into folds by hash; each
pair of a prompt fold and a user fold is a cell, predicted by a model that was fitted to other prompt folds *and* other
user folds. So every judgement is predicted once, and 16 of 25 parts stay to train on. Two other ways are worse: groups
closed under both (connected components) melt into one as soon as people answer common prompts; and dropping, for each
prompt fold, everybody who voted in it leaves nearly nothing to train on when people vote more than once.

With few named users there is no telling people apart: fewer than LEAST_USERS, or one who has half of the
judgements' weight; then folds are by prompt alone, and the report says so. An unnamed voter counts as a person of
their own on each prompt.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from plaudit_learner.near_identical import near_identical
from plaudit_learner.policy import PromptReply
from plaudit_learner.reward.aspects import DEFAULT_ASPECT

FOLDS = 5
LEAST_USERS = 10
LEAST_JUDGEMENTS = 10
LEAST_PROMPTS = 5


class NotEnoughVotesError(ValueError):
    """There are too few votes, or all are alike: nothing can be learned from them."""


@dataclass(frozen=True)
class Vote:
    """A thumb on a reply. Made by the experience store."""

    item: PromptReply
    liked: bool
    weight: float = 1.0
    """0 to 1: how much it counts (experience/influence.py)."""
    user: str = ""
    """Keyed hash of the voter; empty: unknown."""
    aspect: str = DEFAULT_ASPECT
    receipt: str = ""
    """The reply's id; empty: of a reply that nobody else judges."""
    voter: str = ""
    """Who counts for whom: the user that the reply was made for, as its receipt binds it; empty: unknown."""
    at: int = 0
    """When it was said, in microseconds since 1970."""


@dataclass(frozen=True)
class Rating:
    """1 (worst) to 5 (best)."""

    item: PromptReply
    points: int
    weight: float = 1.0
    user: str = ""
    aspect: str = DEFAULT_ASPECT
    receipt: str = ""
    voter: str = ""
    at: int = 0


@dataclass(frozen=True)
class Preference:
    """Of two replies to one prompt, the one preferred."""

    chosen: PromptReply
    rejected: PromptReply
    weight: float = 1.0
    user: str = ""
    aspect: str = DEFAULT_ASPECT
    receipt: str = ""
    """The preferred reply's id."""
    voter: str = ""
    at: int = 0

    @property
    def item(self) -> PromptReply:
        """The one preferred."""
        return self.chosen


class Judgement(Protocol):
    """What thumbs, ratings and preferences have in common."""

    @property
    def item(self) -> PromptReply: ...  # noqa: D102
    @property
    def weight(self) -> float: ...  # noqa: D102
    @property
    def user(self) -> str: ...  # noqa: D102
    @property
    def aspect(self) -> str: ...  # noqa: D102
    @property
    def receipt(self) -> str: ...  # noqa: D102
    @property
    def voter(self) -> str: ...  # noqa: D102
    @property
    def at(self) -> int: ...  # noqa: D102


def prompt_folds(judgements: Sequence[Judgement]) -> Tensor:
    """The prompt's fold of each (N,), never split at random: that of the first prompt that it is near-identical to.

    The same at any time and on any machine, for as long as that one is there.
    """
    prompts = [judgement.item.prompt for judgement in judgements]
    first = near_identical(prompts, [judgement.weight for judgement in judgements])
    return torch.tensor([_fold(repr(prompts[number])) for number in first], dtype=torch.long)


def user_folds(judgements: Sequence[Judgement]) -> Tensor | None:
    """The user's fold of each (N,), or None if there are not enough users to tell apart."""
    named: dict[str, float] = defaultdict(float)
    for judgement in judgements:
        if judgement.user:
            named[judgement.user] += judgement.weight
    if len(named) < LEAST_USERS or 2 * max(named.values()) > sum(judgement.weight for judgement in judgements):
        return None
    keys = [f"user {judgement.user}" if judgement.user else repr(judgement.item.prompt) for judgement in judgements]
    return torch.tensor([_fold(key) for key in keys], dtype=torch.long)


def cells(prompt_N: Tensor, user_N: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """(train, test) masks (N,), of cells that have both."""
    for prompt in range(FOLDS):
        for user in range(FOLDS) if user_N is not None else [None]:
            test_N, train_N = prompt_N == prompt, prompt_N != prompt
            if user_N is not None:
                test_N, train_N = test_N & (user_N == user), train_N & (user_N != user)
            if test_N.any() and train_N.any():
                yield train_N, test_N


def require_enough(votes: Sequence[Vote], preferences: Sequence[Preference], ratings: Sequence[Rating]) -> None:
    """Raises NotEnoughVotesError if nothing can be learned from these judgements of one aspect."""
    judgements: list[Judgement] = [*votes, *preferences, *ratings]
    prompts = {judgement.item.prompt for judgement in judgements}
    if len(judgements) < LEAST_JUDGEMENTS or len(prompts) < LEAST_PROMPTS:
        raise NotEnoughVotesError(
            f"{len(votes)} votes, {len(preferences)} preferences and {len(ratings)} ratings on {len(prompts)} prompts: "
            f"at least {LEAST_JUDGEMENTS} judgements on {LEAST_PROMPTS} prompts are needed"
        )
    if not preferences and len({vote.liked for vote in votes}) < 2 and len({rating.points for rating in ratings}) < 2:
        raise NotEnoughVotesError("all votes point the same way: there is nothing to tell good from bad by")


def _fold(key: str) -> int:
    return hashlib.sha256(key.encode()).digest()[0] % FOLDS
