"""How good a reward model is on judgements that it was not trained on, with 95 % intervals over resampled prompts.

Shapes: N judgements, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from plaudit.wilson import wilson
from plaudit_learner.policy import PromptReply
from plaudit_learner.reward.calibration import (
    Bin,
    Interval,
    auc,
    bootstrap,
    brier,
    concordance,
    ece,
    reliability,
    right,
)
from plaudit_learner.reward.judgements import Judgement, Preference, Rating, Vote
from plaudit_learner.reward.model import RewardModel


@dataclass(frozen=True)
class Figure:
    """One number of the report."""

    aspect: str
    what: str
    judgements: int
    value: float
    low: float
    """Of the 95 % interval; nan: unknown, of too few prompts or of none that differ."""
    high: float

    @property
    def between(self) -> str:
        """The interval, for people."""
        return "unknown" if math.isnan(self.low) else f"{self.low:.3f}–{self.high:.3f}"

    def text(self) -> str:
        """The line of the table."""
        return f"{self.aspect:12} {self.what:24} {self.value:6.3f}  {f'({self.between})':13}  {self.judgements:6}"


def measure(
    reward_model: RewardModel,
    features: Mapping[PromptReply, Tensor],
    votes: Sequence[Vote],
    preferences: Sequence[Preference],
    ratings: Sequence[Rating],
) -> list[Figure]:
    """Every figure that the judgements allow, aspect by aspect; each aspect must have a head.

    features: what the reference policy makes of each reply (D,).
    """
    judgements: list[Judgement] = [*votes, *preferences, *ratings]
    figures: list[Figure] = []
    for aspect in sorted({judgement.aspect for judgement in judgements}):
        liking = partial(_liking, reward_model, features, aspect)
        pairs = [pair for pair in preferences if pair.aspect == aspect]
        gap_P = liking([pair.chosen for pair in pairs]) - liking([pair.rejected for pair in pairs])
        thumbs = [vote for vote in votes if vote.aspect == aspect]
        liked_N = torch.tensor([vote.liked for vote in thumbs], dtype=torch.bool)
        rated = [rating for rating in ratings if rating.aspect == aspect]
        points_N = torch.tensor([rating.points for rating in rated], dtype=torch.long)
        figures += _of_pairs(aspect, pairs, gap_P)
        figures += _of_thumbs(aspect, thumbs, liking([vote.item for vote in thumbs]), liked_N)
        figures += _of_ratings(aspect, rated, liking([rating.item for rating in rated]), points_N)
    return figures


def reliability_tables(
    reward_model: RewardModel, features: Mapping[PromptReply, Tensor], votes: Sequence[Vote]
) -> dict[str, tuple[Bin, ...]]:
    """What was predicted of thumbs beside what came, by aspect; arguments as for `measure`."""
    tables = {}
    for aspect in sorted({vote.aspect for vote in votes}):
        thumbs = [vote for vote in votes if vote.aspect == aspect]
        chance_N = _liking(reward_model, features, aspect, [vote.item for vote in thumbs]).sigmoid()
        tables[aspect] = reliability(chance_N, torch.tensor([vote.liked for vote in thumbs]))
    return tables


def _liking(
    reward_model: RewardModel, features: Mapping[PromptReply, Tensor], aspect: str, items: Sequence[PromptReply]
) -> Tensor:
    """Log-odds of a thumb up (N,), float64."""
    if not items:
        return torch.zeros(0, dtype=torch.float64)
    return reward_model.margin(torch.stack([features[item] for item in items]), aspect).double()


def _of_pairs(aspect: str, pairs: Sequence[Preference], gap_P: Tensor) -> Iterator[Figure]:
    if pairs:
        right_P = right(gap_P)
        interval = bootstrap(lambda rows: float(right_P[rows].mean()), _prompts(pairs))
        if interval.value in (0.0, 1.0):  # no draw differs: as sure as of one judgement on each prompt
            prompts = len(set(_prompts(pairs)))
            interval = Interval(interval.value, *wilson(round(interval.value * prompts), prompts))
        yield Figure(aspect, "accuracy on pairs", len(pairs), *interval)


def _of_thumbs(aspect: str, thumbs: Sequence[Vote], logit_N: Tensor, liked_N: Tensor) -> Iterator[Figure]:
    chance_N, prompts = logit_N.sigmoid(), _prompts(thumbs)
    statistics = {
        "AUC on thumbs": lambda rows: auc(logit_N[rows], liked_N[rows]),
        "ECE on thumbs": lambda rows: ece(reliability(chance_N[rows], liked_N[rows])),
        "Brier score on thumbs": lambda rows: brier(chance_N[rows], liked_N[rows]),
    }
    for what, statistic in statistics.items() if thumbs else ():
        yield Figure(aspect, what, len(thumbs), *bootstrap(statistic, prompts))


def _of_ratings(aspect: str, rated: Sequence[Rating], liking_N: Tensor, points_N: Tensor) -> Iterator[Figure]:
    if rated:
        interval = bootstrap(lambda rows: concordance(liking_N[rows], points_N[rows]), _prompts(rated))
        yield Figure(aspect, "concordance on ratings", len(rated), *interval)


def _prompts(judgements: Sequence[Judgement]) -> list[tuple[int, ...]]:
    return [judgement.item.prompt for judgement in judgements]
