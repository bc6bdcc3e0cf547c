"""Roll back, promote, or go on: a pure function of what the canary and the stable version got, and why, in words.

            surely worse, in votes, errors or time ─────────────▶ roll back
            surely not worse by more than MARGIN ───────────────▶ promote
    else    so much was seen that more would not help ──┬ worse ▶ roll back
                                                        └ else ─▶ promote
            else ───────────────────────────────────────────────▶ go on

"Surely" is `betting.py`'s: the test may be asked after every vote. A version that is as good as the stable one is
rolled back wrongly with probability at most 0.05 in all, which is divided up in ALPHA (by the union bound). The last
look, once the limit is reached, is `deal.py`'s. What "in all" takes for granted is in docs/release.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from plaudit_learner.canary.betting import log_capital
from plaudit_learner.canary.deal import chance_of_less
from plaudit_learner.canary.evidence import TOO_SELDOM, TOO_SLOW, Arm, Evidence

ALPHA = {"approval": 0.03, "last look": 0.01, "vote rate": 0.005, "errors": 0.002, "time": 0.002, "served": 0.001}
"""The chance of rolling back a version that is as good as the stable one, by what for; 0.05 in all."""
ALPHA_PROMOTE = 0.05
"""The chance of promoting, before the limit, a version that is worse by MARGIN or more."""
MARGIN = 0.1
"""In approval. A smaller one would take more votes than a small deployment has: about 2 log(1/α) / MARGIN²."""
_LEAST_SHARE_SERVED = 0.5  # of the replies that the draw gives it; servers that cannot load it serve the stable version


@dataclass(frozen=True, slots=True)
class Rules:
    """How much is to be seen."""

    least_votes: int = 16
    """On each side, before votes decide anything; and as many replies, before errors or time do."""
    most_votes: int = 100
    """On each side, after which the trial ends."""
    most_replies: int = 1000
    """Of the canary by its share, after which the trial ends, however few votes there are."""
    most_kept: int = 100_000
    """Of both since the trial began: the store keeps no more of it, so a trial at a very small share ends here."""


class Decision(StrEnum):
    """What becomes of a canary."""

    GO_ON = "go on"
    PROMOTE = "promote"
    ROLL_BACK = "roll back"


@dataclass(frozen=True, slots=True)
class Judgement:
    """Made by `judge`; carried out and announced by the reviewer."""

    decision: Decision
    reason: str
    """In words, with the figures."""
    log_capital: float
    """Evidence that it is liked less: natural logarithm of the bettors' capital."""


def judge(evidence: Evidence, rules: Rules) -> Judgement:
    """What is to become of the canary, by what was seen."""
    ours, theirs = evidence.canary, evidence.stable
    harm = log_capital(-difference for difference in evidence.approval)

    def judgement(decision: Decision, reason: str) -> Judgement:
        return Judgement(decision, f"{reason}: {_told(ours, theirs)}", harm)

    enough_replies = min(ours.replies, theirs.replies) >= rules.least_votes
    enough_votes = min(ours.votes, theirs.votes) >= rules.least_votes
    if enough_votes and _surely(harm, "approval"):
        return judgement(Decision.ROLL_BACK, "liked less than the stable version")
    if enough_replies and _surely(log_capital(-d for d in evidence.errors), "errors"):
        return judgement(Decision.ROLL_BACK, "more of its replies end in an error")
    if enough_replies and _surely(log_capital(-d for d in evidence.punctual), "time"):
        return judgement(Decision.ROLL_BACK, f"most of its replies take more than {TOO_SLOW:g} times as long")
    if enough_replies and _surely(log_capital(-d for d in evidence.voted), "vote rate"):
        return judgement(Decision.ROLL_BACK, f"voted on less than {TOO_SELDOM:g} times as often")
    # Not worse by more than the margin: that the mean difference is below -MARGIN is what is bet against.
    bets = (min(1.0, difference + MARGIN) for difference in evidence.approval)
    if enough_votes and log_capital(bets) >= -math.log(ALPHA_PROMOTE):
        return judgement(Decision.PROMOTE, f"surely not liked less by {MARGIN:g} or more")
    drawn = evidence.share * (ours.replies + theirs.replies)
    enough_drawn = min(ours.votes, theirs.votes) >= rules.most_votes or drawn >= rules.most_replies
    if not enough_drawn and evidence.begun < rules.most_kept:
        return judgement(Decision.GO_ON, "on trial")
    if _hardly_served(ours.replies, evidence.drawn, evidence.share):
        return judgement(Decision.ROLL_BACK, f"of about {drawn:.0f} replies that were to be its own it gave few")
    if ours.replies < min(rules.least_votes, rules.most_replies / 2):
        return judgement(Decision.ROLL_BACK, f"too few of {evidence.begun} replies were its own to tell")
    if enough_votes and (chance := chance_of_less(evidence.votes)) <= ALPHA["last look"]:
        reason = f"liked less than the stable version at the end of its trial (p {chance:.2g})"
        return judgement(Decision.ROLL_BACK, reason)
    return judgement(Decision.PROMOTE, "no sign of harm to the end of its trial")


def _surely(log_capital: float, what: str) -> bool:
    return log_capital >= -math.log(ALPHA[what])


def _hardly_served(served: int, drawn: Sequence[int], share: float) -> bool:
    """Whether the canary gave less than half of what the draw gives it, and the draw's luck is no explanation.

    drawn: replies n of each that was drawn for itself. If the canary answers all that it is drawn for, the chance that
    it gives t fewer than the expected number is at most exp(-t² / 2 share sum n²) (Maurer, "A bound on the deviation
    probability for sums of non-negative random variables", JIPAM 4:15, 2003). So two dozen users without conversations'
    ids, of whom a tenth may be nobody, prove nothing.
    """
    expected = share * sum(drawn)
    lacking = expected - served
    luck = 2 * share * sum(n * n for n in drawn) * -math.log(ALPHA["served"])
    return lacking > (1 - _LEAST_SHARE_SERVED) * expected and lacking**2 >= luck


def _told(ours: Arm, theirs: Arm) -> str:
    """The figures, the vote rate among them: who is not voted on at all is not liked, either."""

    def side(arm: Arm) -> str:
        liked = f"{arm.approval:.2f} of {arm.votes} votes" if arm.votes else "no votes"
        rate = f"{arm.voted / arm.replies:.0%} of {arm.replies} replies voted on" if arm.replies else "no replies"
        return f"{liked} ({rate}, {arm.errors} errors, {arm.seconds:.1f} s each)"

    return f"{side(ours)}; stable {side(theirs)}"
