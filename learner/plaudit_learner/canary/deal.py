"""The last look's test: would the canary's votes be as low if each block's votes had been dealt out by chance?

If two versions are liked alike, any vote of a block could as well have been the canary's: who was drawn decided. So the
votes of each block are dealt out anew, as many to either side as there were, and the p-value is how often the sum of
the differences comes out as low as it did (Fisher, "The Design of Experiments", 1935, §21). That holds its level
whatever the votes are: few and unequal blocks, hardly any that are good, ratings. An approximation by the normal
distribution does not: with one vote beside nine, of which one in ten is good, differences are far from symmetric.

Deals are drawn, not counted out; (1 + as low) / (1 + drawn) is a p-value nevertheless (Phipson & Smyth, "Permutation
p-values should never be zero", 2010). They are the same ones at each call.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import numpy as np

DEALS = 9_999
"""At the level of 0.01 the p-value so is within about 0.001 of the one of all deals."""
_ROUNDING = 1e-9  # sums that differ by less are the same


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the means; good for us if positive."""
    return statistics.fmean(ours) - statistics.fmean(theirs)


def chance_of_less(blocks: Iterable[tuple[Sequence[float], Sequence[float]]]) -> float:
    """One-sided p-value of: ours are liked no less.

    blocks: scores of ours and of theirs, of which one side has exactly one. Raises ValueError if it has not.
    """
    dice = np.random.default_rng(0)
    seen, dealt_D = 0.0, np.zeros(DEALS)
    for ours, theirs in blocks:
        if min(len(ours), len(theirs)) != 1:
            raise ValueError(f"a block of {len(ours)} and {len(theirs)}; one side has exactly one")
        votes = np.array([*ours, *theirs])
        sign = 1 if len(ours) == 1 else -1
        alone = sign * (votes - (votes.sum() - votes) / (len(votes) - 1))  # each beside the mean of all others
        dealt_D += alone[dice.integers(len(votes), size=DEALS)]
        seen += difference(ours, theirs)
    return float(1 + np.count_nonzero(dealt_D <= seen + _ROUNDING)) / (1 + DEALS)
