"""How well scores tell good from bad (AUC), how well probabilities hold (ECE, Brier), and how sure that is (bootstrap).

Shapes: N judgements.
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


@dataclass(frozen=True)
class Bin:
    """Judgements whose predicted probability lies in one tenth of 0 to 1."""

    count: int
    predicted: float
    """Mean probability of a thumb up."""
    observed: float
    """Share of thumbs up."""


class Interval(NamedTuple):
    """An estimate, and the 95 % interval around it."""

    value: float
    low: float
    high: float


def auc(score_N: Tensor, liked_N: Tensor) -> float:
    """Area under the ROC curve: the probability that a liked reply scores above one that is not, ties half.

    nan if there is none of either kind.
    """
    return concordance(score_N, liked_N.long())


def concordance(score_N: Tensor, grade_N: Tensor) -> float:
    """Probability that of two replies of different grade the better one scores higher, ties half; nan without such.

    Of two grades it is the AUC; of more, Harrell's C (Harrell et al. 1982). Costs N log N time for each grade.
    """
    wins, pairs = 0.0, 0
    for grade in grade_N.unique().tolist():
        above_N = score_N[grade_N > grade]
        below_N = score_N[grade_N == grade].sort().values
        lower = torch.searchsorted(below_N, above_N.contiguous()).double()
        not_higher = torch.searchsorted(below_N, above_N.contiguous(), right=True).double()
        wins += float((lower + not_higher).sum()) / 2
        pairs += len(above_N) * len(below_N)
    return wins / pairs if pairs else float("nan")


def reliability(probability_N: Tensor, liked_N: Tensor) -> tuple[Bin, ...]:
    """What was predicted beside what came, by BINS bins of equal width; those without judgements are left out."""
    bin_N = (probability_N * BINS).long().clamp(0, BINS - 1)
    return tuple(
        Bin(int(here_N.sum()), float(probability_N[here_N].mean()), float(liked_N[here_N].double().mean()))
        for here_N in (bin_N == number for number in range(BINS))
        if here_N.any()
    )


def ece(table: Sequence[Bin]) -> float:
    """Expected calibration error: mean gap of predicted and observed (Guo et al. 2017, section 2); nan if empty."""
    total = sum(row.count for row in table)
    return sum(row.count * abs(row.predicted - row.observed) for row in table) / total if total else float("nan")


def brier(probability_N: Tensor, liked_N: Tensor) -> float:
    """Mean squared error of the probabilities (Brier 1950); 0.25 for one who always says one half. nan if empty."""
    return float((probability_N - liked_N.double()).square().mean())


def bootstrap(
    statistic: Callable[[Tensor], float], groups: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """A statistic of row numbers, with its 95 % percentile interval over resampled groups (Efron 1979; for clusters,
    Field and Welsh 2007). Judgements on one prompt are alike: drawing rows by themselves would claim too much.

    Draws for which the statistic is nan are left out; both ends are nan if there are none.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    rows = [torch.tensor(of_group) for of_group in members.values()]
    value = statistic(torch.arange(len(groups)))
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(resamples if rows else 0):
        drawn = torch.randint(len(rows), (len(rows),), generator=generator).tolist()
        draw = statistic(torch.cat([rows[group] for group in drawn]))
        if not math.isnan(draw):
            draws.append(draw)
    if not draws:
        return Interval(value, float("nan"), float("nan"))
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Interval(value, float(low), float(high))
