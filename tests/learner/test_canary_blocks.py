"""Who stands beside whom: as many as the share says, at about the same time, whatever the share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_learner.canary.blocks import SLACK, blocks
from plaudit_learner.canary.evidence import weigh
from plaudit_learner.canary.judge import ALPHA, Decision, Rules, judge
from plaudit_learner.experience.on_trial import Ballot, Exposure

TRIALS = 25


@dataclass(frozen=True)
class One:
    at: int

    @property
    def response_id(self) -> str:
        return str(self.at)


def told(order: str, share: float) -> list[str]:
    """c: the canary's, s: the stable version's, in the order in which they came."""
    ours, theirs = ([One(at) for at, who in enumerate(order) if who == side] for side in "cs")
    return [" ".join("".join(str(one.at) for one in arm) for arm in block) for block in blocks(ours, theirs, share)]


def test_small_examples() -> None:
    assert told("cscs", 0.5) == ["0 1", "2 3"]
    assert told("scsss", 0.25) == ["1 023"]
    assert told("sscssscs", 0.25) == ["2 013", "6 457"]
    assert told("ccscccsc", 0.75) == ["013 2", "457 6"], "the other way round"
    assert told("scsscs", 0.4) == ["1 0", "4 23"], "1½ each: one, then two"
    assert told("", 0.4) == told("ccc", 0.4) == []


@given(st.lists(st.booleans(), max_size=200), st.sampled_from([0.05, 0.3, 0.42, 0.5, 0.6, 0.95]))
def test_a_block_has_one_of_one_side_and_each_stands_once(order: list[bool], share: float) -> None:
    ours, theirs = ([One(at) for at, mine in enumerate(order) if mine == side] for side in (True, False))
    found = list(blocks(ours, theirs, share))
    each = max(share, 1 - share) / min(share, 1 - share)
    for mine, other in found:
        one, several = (mine, other) if share <= 0.5 else (other, mine)
        assert len(one) == 1
        assert len(several) in (math.floor(each), math.ceil(each))
    for side in (0, 1):
        stood = [one.at for block in found for one in block[side]]
        assert stood == sorted(set(stood))


def test_what_would_wait_too_long_is_left_out() -> None:
    found = told("s" * 30 + "cc", 0.5)
    assert found == [f"30 {30 - SLACK}", f"31 {31 - SLACK}"]


def trials(share: float, count: int) -> int:
    """How many equal versions are rolled back where 0.3 and 0.7 of the replies are liked, in turns of 200 votes."""
    wrong = 0
    for seed in range(count):
        dice = np.random.default_rng(seed)
        replies = round(1.5 * 100 / min(share, 1 - share))
        first, ours = dice.integers(400), dice.random(replies) < share
        liked = dice.random(replies) < np.where((np.arange(replies) + first) // 200 % 2, 0.3, 0.7)
        canary, stable = (
            [Exposure(f"{n:05}", n, 1.0, 9, False) for n in np.flatnonzero(ours == side)] for side in (True, False)
        )
        ballots = [Ballot(f"{n:05}", "", "", float(liked[n]), n) for n in range(replies)]
        decision = judge(weigh(canary, stable, ballots, share, most_votes=100), Rules()).decision
        wrong += decision == Decision.ROLL_BACK
    return wrong


@pytest.mark.parametrize("share", [0.1, 0.7, 0.9])
def test_equal_versions_are_not_rolled_back_because_what_people_like_changes(share: float) -> None:
    """So many or fewer, of which the chance at ALPHA's rate is 0.999. Pairs of one and one had 10 at 0.7."""
    most = ALPHA["approval"] + ALPHA["last look"]
    bound = next(k for k in range(TRIALS + 1) if binomial(k, TRIALS, most) >= 0.999)
    assert trials(share, TRIALS) <= bound


def binomial(most: int, trials: int, chance: float) -> float:
    return sum(math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(most + 1))
