"""How well scores tell good from bad (AUC), how well probabilities hold (ECE, Brier), and how sure that is (bootstrap).

Judgements may have weights, 1 each if none are given: one of weight w counts as w of them would.

Shapes: N judgements, P preferences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 10
RESAMPLES = 1000
LEAST_GROUPS = 10
"""Resamples of fewer say little of how much others would differ."""


@dataclass(frozen=True)
class Bin:
    """Judgements whose predicted probability lies in one tenth of 0 to 1."""

    count: float
    """By weight."""
    predicted: float
    """Mean probability of a thumb up."""
    observed: float
    """Share of thumbs up."""


class Interval(NamedTuple):
    """An estimate, and the 95 % interval around it."""

    value: float
    low: float
    high: float


def auc(score_N: Tensor, liked_N: Tensor, weight_N: Tensor | None = None) -> float:
    """Area under the ROC curve: the probability that a liked reply scores above one that is not, ties half.

    nan if there is none of either kind.
    """
    return concordance(score_N, liked_N.long(), weight_N)


def concordance(score_N: Tensor, grade_N: Tensor, weight_N: Tensor | None = None) -> float:
    """Probability that of two replies of different grade the better one scores higher, ties half; nan without such.

    Of two grades it is the AUC; of more, Harrell's C (Harrell et al. 1982). Costs N log N time for each grade.
    """
    weight_N = torch.ones(len(score_N), dtype=torch.float64) if weight_N is None else weight_N.double()
    wins, pairs = 0.0, 0.0
    for grade in grade_N.unique().tolist():
        above_N, above_weight_N = score_N[grade_N > grade].contiguous(), weight_N[grade_N > grade]
        below_N, order = score_N[grade_N == grade].sort()
        below_weight_N = weight_N[grade_N == grade][order]
        up_to = torch.cat([torch.zeros(1, dtype=torch.float64), below_weight_N.cumsum(0)])  # weight of the n lowest
        lower, not_higher = (up_to[torch.searchsorted(below_N, above_N, right=ties)] for ties in (False, True))
        wins += float((above_weight_N * (lower + not_higher)).sum()) / 2
        pairs += float(above_weight_N.sum() * below_weight_N.sum())
    return wins / pairs if pairs else float("nan")


def right(margin_P: Tensor) -> Tensor:
    """Which preferences are predicted (P,), of the chosen reply's score less the other's: 1 or 0, a tie one half."""
    return (margin_P > 0).double() + 0.5 * (margin_P == 0).double()


def reliability(probability_N: Tensor, liked_N: Tensor, weight_N: Tensor | None = None) -> tuple[Bin, ...]:
    """What was predicted beside what came, by BINS bins of equal width; those without judgements are left out."""
    weight_N = torch.ones(len(probability_N), dtype=torch.float64) if weight_N is None else weight_N
    bin_N = (probability_N * BINS).long().clamp(0, BINS - 1)
    return tuple(
        Bin(
            float(weight_N[here_N].sum()),
            mean(probability_N[here_N], weight_N[here_N]),
            mean(liked_N[here_N].double(), weight_N[here_N]),
        )
        for here_N in (bin_N == number for number in range(BINS))
        if weight_N[here_N].sum() > 0
    )


def ece(table: Sequence[Bin]) -> float:
    """Expected calibration error: mean gap of predicted and observed (Guo et al. 2017, section 2); nan if empty."""
    total = sum(row.count for row in table)
    return sum(row.count * abs(row.predicted - row.observed) for row in table) / total if total else float("nan")


def brier(probability_N: Tensor, liked_N: Tensor, weight_N: Tensor | None = None) -> float:
    """Mean squared error of the probabilities (Brier 1950); 0.25 for one who always says one half. nan if empty."""
    return mean((probability_N - liked_N.double()).square(), weight_N)


def mean(value_N: Tensor, weight_N: Tensor | None = None) -> float:
    """nan if there is none, or none that weighs."""
    if weight_N is None:
        return float(value_N.mean())
    return float((weight_N * value_N).sum() / weight_N.sum())


def bootstrap(
    statistic: Callable[[Tensor], float], groups: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """A statistic of row numbers, with its 95 % percentile interval over resampled groups (Efron 1979; for clusters,
    Field and Welsh 2007). Judgements on one prompt are alike: drawing rows by themselves would claim too much.

    Draws for which the statistic is nan are left out. Both ends are nan, unknown, if there are none, if there are fewer
    than LEAST_GROUPS groups, and if no draw differs: then the rows say nothing of how far off their value is.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    rows = [torch.tensor(of_group) for of_group in members.values()]
    value = statistic(torch.arange(len(groups)))
    unknown = Interval(value, math.nan, math.nan)
    if len(rows) < LEAST_GROUPS:
        return unknown
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(resamples):
        drawn = torch.randint(len(rows), (len(rows),), generator=generator).tolist()
        draw = statistic(torch.cat([rows[group] for group in drawn]))
        if not math.isnan(draw):
            draws.append(draw)
    if not draws:
        return unknown
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Interval(value, float(low), float(high)) if low < high else unknown
