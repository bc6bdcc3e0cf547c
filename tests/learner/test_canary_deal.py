"""The last look holds its level, however few of the votes are good and however many stand beside one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from plaudit_learner.canary.deal import DEALS, chance_of_less
from plaudit_learner.canary.judge import ALPHA

Blocks = list[tuple[list[float], list[float]]]


def by_hand(blocks: Blocks) -> float:
    """All deals counted out."""
    seen, total, low = 0.0, 0, 0
    deals = []
    for ours, theirs in blocks:
        votes, alone = [*ours, *theirs], len(ours) == 1
        means = [(vote, (sum(votes) - vote) / (len(votes) - 1)) for vote in votes]
        deals.append([one - rest if alone else rest - one for one, rest in means])
        seen += sum(ours) / len(ours) - sum(theirs) / len(theirs)
    for deal in product(*deals):
        total += 1
        low += sum(deal) <= seen + 1e-9
    return low / total


@pytest.mark.parametrize(
    "blocks",
    [
        [([0.0], [1.0])] * 5 + [([1.0], [0.0])],
        [([0.0], [1.0, 1.0, 0.0]), ([0.25], [0.5, 1.0, 0.0]), ([0.0], [0.75, 1.0, 0.25])],
        [([0.0, 0.0, 1.0], [1.0]), ([0.25, 0.0], [1.0]), ([0.5, 1.0, 0.0], [0.75])],
    ],
)
def test_all_deals_counted_out_say_the_same(blocks: Blocks) -> None:
    exact = by_hand(blocks)
    assert chance_of_less(blocks) == pytest.approx(exact, abs=4 * (exact * (1 - exact) / DEALS) ** 0.5 + 1 / DEALS)
    assert chance_of_less(blocks) == chance_of_less(blocks)


def test_bounds() -> None:
    assert chance_of_less([]) == 1.0
    assert chance_of_less([([0.5], [0.5, 0.5])] * 9) == 1.0
    assert chance_of_less([([0.0], [1.0])] * 40) == pytest.approx(1 / (1 + DEALS)), "never 0"
    with pytest.raises(ValueError, match="a block of 2 and 2; one side has exactly one"):
        chance_of_less([([1.0, 0.0], [1.0, 1.0])])


@pytest.mark.parametrize("beside", [1, 9])
@pytest.mark.parametrize("liked", [0.05, 0.1, 0.5, 0.9])
def test_the_level_is_held(beside: int, liked: float) -> None:
    """400 equal versions: 4 of them, and no more than 11 with probability 0.999. z = Σd / √Σd² had 80 at 0.05 and 9."""
    dice = np.random.default_rng(beside)
    blocks = 16 if beside == 9 else 60  # with so few votes the approximation was worst
    wrong = 0
    for _ in range(400):
        votes = (dice.random((blocks, beside + 1)) < liked).astype(float).tolist()
        wrong += chance_of_less([(block[:1], block[1:]) for block in votes]) <= ALPHA["last look"]
    assert wrong <= 11
