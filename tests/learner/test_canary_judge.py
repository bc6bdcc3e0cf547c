"""The canary's judge: golden numbers, its error rate by simulation, and what it decides by what."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_learner.canary.betting import BETTORS, log_capital
from plaudit_learner.canary.evidence import FEW, Arm, Evidence, weigh
from plaudit_learner.canary.judge import ALPHA, Decision, Rules, judge
from plaudit_learner.experience.on_trial import Ballot, Exposure

RULES = Rules()


def test_golden_capitals() -> None:
    # One won bet: 1 + the mean fraction, 0.5. Two: the mean of (1 + l)² = 1 + 2 · 0.5 + 0.325. Losses are forgotten.
    assert log_capital([]) == 0.0
    assert log_capital([1.0]) == pytest.approx(math.log(1.5))
    assert log_capital([1.0, 1.0]) == pytest.approx(math.log(2.325))
    assert log_capital([1.0, 1.0, -1.0]) == pytest.approx(math.log(2.325))
    assert log_capital([-1.0, -0.5]) == 0.0
    assert log_capital([0.5]) == pytest.approx(math.log(1.25))
    assert len(BETTORS) == 19


@pytest.mark.parametrize("gain", [1.01, -1.01, math.nan])
def test_a_gain_out_of_bounds_is_refused(gain: float) -> None:
    with pytest.raises(ValueError, match="-1 to 1"):
        log_capital([0.0, gain])


@given(st.lists(st.floats(-1, 1), max_size=40), st.lists(st.floats(-1, 1), max_size=40))
def test_capital_only_grows_and_is_never_lost(first: list[float], second: list[float]) -> None:
    assert 0.0 <= log_capital(first) <= log_capital(first + second)


def exposure(name: str, at: int, *, seconds: float = 1.0, tokens: int = 10, failed: bool = False) -> Exposure:
    return Exposure(name, at, seconds, tokens, failed)


class Trial:
    """Two versions that answer in turn, with the share's odds, and are voted on."""

    def __init__(self, seed: int, share: float = 0.5) -> None:
        self.draw = random.Random(seed)
        self.share = share
        self.arms: tuple[list[Exposure], list[Exposure]] = ([], [])
        self.ballots: list[Ballot] = []
        self.clock = 0

    def reply(
        self,
        ours: bool,
        *,
        liked: float,
        rate: float = 1.0,
        user: str = "",
        said: str = "",
        conversation: str = "",
        **how: float,
    ) -> None:
        """user: whom it is given to; said: the name given with the vote on a reply to nobody known."""
        self.clock += 1
        name = f"r{self.clock}"
        failed = self.draw.random() < how.pop("failing", 0.0)
        told = exposure(name, self.clock, failed=failed, **how)  # type: ignore[arg-type]
        self.arms[not ours].append(replace(told, user=user, conversation=conversation))
        if self.draw.random() < rate:
            score = float(self.draw.random() < liked)
            self.ballots.append(Ballot(name, user, user or said, score, self.clock))

    def evidence(self) -> Evidence:
        return weigh(*self.arms, self.ballots, self.share, most_votes=RULES.most_votes)

    def run(self, ours: dict[str, float], theirs: dict[str, float], replies: int) -> Evidence:
        for _ in range(replies):
            mine = self.draw.random() < self.share
            self.reply(mine, **(ours if mine else theirs))  # type: ignore[arg-type]
        return self.evidence()


def test_an_equal_version_is_seldom_rolled_back_however_often_one_looks() -> None:
    """400 trials, likings that drift, shares of both kinds. 0.05 are allowed; about 0.02 are rolled back."""
    wrong = 0
    for seed in range(400):
        trial = Trial(seed, share=0.5 if seed % 2 else 0.2)
        for step in range(600):
            trial.reply(trial.draw.random() < trial.share, liked=0.2 + 0.6 * step / 600)
        # The capital is the largest at any time: this is as if it had been asked at each vote.
        judgement = judge(trial.evidence(), RULES)
        wrong += judgement.decision == Decision.ROLL_BACK
    assert wrong <= 0.05 * 400


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_version_that_is_disliked_is_rolled_back(share: float) -> None:
    for seed in range(20):
        judgement = judge(Trial(seed, share).run({"liked": 0.1}, {"liked": 0.5}, 1100 if share < 0.2 else 220), RULES)
        assert judgement.decision == Decision.ROLL_BACK
        assert judgement.reason.startswith("liked less than the stable version: 0.")


def test_a_version_that_is_liked_better_is_promoted_before_the_end() -> None:
    early = 0
    for seed in range(20):
        evidence = Trial(seed).run({"liked": 0.8}, {"liked": 0.5}, 110)
        judgement = judge(evidence, RULES)
        assert evidence.canary.votes < RULES.most_votes
        assert judgement.decision != Decision.ROLL_BACK
        early += judgement.decision == Decision.PROMOTE
    assert early >= 18


ARM = Arm(replies=100, votes=100, approval=0.5, voted=100, errors=0, seconds=1.0)
GOOD, BAD, SAME = ((1.0,), (0.0,)), ((0.0,), (1.0,)), ((1.0,), (1.0,))
EVEN = Evidence(ARM, ARM, 0.5, 200, (1,) * 200, (GOOD, BAD) * 50, (0.5,) * 100, (0.0,) * 100, (1.0,) * 100)


def test_the_minimum_exposure_is_kept_and_the_limit_ends_it() -> None:
    few = replace(ARM, replies=RULES.least_votes - 1, votes=RULES.least_votes - 1)
    hated = replace(EVEN, canary=few, stable=few, votes=(BAD,) * 15, errors=(-1.0,) * 15)
    assert judge(hated, RULES).decision == Decision.GO_ON
    assert judge(hated, replace(RULES, least_votes=15)).decision == Decision.ROLL_BACK
    short = replace(EVEN, canary=replace(ARM, votes=99), votes=EVEN.votes[:99])
    assert judge(short, RULES).decision == Decision.GO_ON
    ended = judge(EVEN, RULES)
    assert (ended.decision, ended.reason.split(":")[0]) == (Decision.PROMOTE, "no sign of harm to the end of its trial")


def test_the_last_look_sees_what_was_not_sure_on_the_way() -> None:
    # Of 100 pairs 24 good, and so many bad. By chance that many of 67 or 69 are with probability 0.014 or 0.008.
    for bad, decision in ((43, Decision.PROMOTE), (45, Decision.ROLL_BACK)):
        votes = [GOOD] * 24 + [SAME] * (76 - bad) + [BAD] * bad
        random.Random(1).shuffle(votes)
        seen = replace(EVEN, votes=tuple(votes))
        assert log_capital(-d for d in seen.approval) < -math.log(ALPHA["approval"])
        judgement = judge(seen, RULES)
        assert judgement.decision == decision, judgement.reason


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        ({"failing": 0.5}, "more of its replies end in an error"),
        ({"seconds": 2.0}, "most of its replies take more than 1.5 times as long"),
        ({"rate": 0.05}, "voted on less than 0.5 times as often"),
    ],
)
def test_what_is_liked_as_well_is_rolled_back_for_other_harm(ours: dict[str, float], words: str) -> None:
    stable = {"liked": 0.5, "rate": 0.6}
    judgement = judge(Trial(3).run({**stable, **ours}, stable, 250), RULES)
    assert judgement.decision == Decision.ROLL_BACK
    assert judgement.reason.startswith(words)
    even = judge(Trial(3).run(stable, stable, 250), RULES)
    assert even.decision != Decision.ROLL_BACK


def test_a_brief_version_is_not_called_slow() -> None:
    """0.2 s to the first token and 0.02 s for each: 0.4 s for 10 tokens is slower by token, and earlier in hand."""
    brief, long = {"liked": 0.5, "seconds": 0.4, "tokens": 10}, {"liked": 0.5, "seconds": 1.2, "tokens": 50}
    assert judge(Trial(0).run(brief, long, 300), RULES).decision != Decision.ROLL_BACK
    assert judge(Trial(0).run(long, brief, 300), RULES).decision != Decision.ROLL_BACK


def test_a_canary_that_servers_hardly_serve_is_rolled_back_and_not_waited_for_for_ever() -> None:
    nobody = Arm(0, 0, 0.0, 0, 0, 0.0)
    seen = replace(
        EVEN,
        canary=nobody,
        stable=replace(ARM, replies=2100),
        drawn=(1,) * 2100,
        votes=(),
        voted=(),
        errors=(),
        punctual=(),
    )
    judgement = judge(seen, RULES)
    assert judgement.decision == Decision.ROLL_BACK
    assert judgement.reason.startswith(
        "of about 1050 replies that were to be its own it gave few: no votes (no replies"
    )


def test_a_trial_ends_when_the_store_is_full_of_it() -> None:
    """At a share so small that it would take more replies than are kept to draw its limit."""
    rare = replace(EVEN, canary=replace(ARM, votes=5), share=0.001, begun=RULES.most_kept)
    assert judge(replace(rare, begun=RULES.most_kept - 1), RULES).decision == Decision.GO_ON
    assert judge(rare, RULES).decision == Decision.PROMOTE
    few = replace(ARM, replies=RULES.least_votes - 1, votes=0)
    judgement = judge(replace(rare, canary=few), RULES)
    assert judgement.decision == Decision.ROLL_BACK
    assert judgement.reason.startswith("too few of 100000 replies were its own to tell: ")


def test_a_version_that_nobody_votes_on_is_promoted_in_the_end_and_that_is_said() -> None:
    judgement = judge(Trial(0).run({"liked": 0.5, "rate": 0.0}, {"liked": 0.5, "rate": 0.0}, 2020), RULES)
    assert judgement.decision == Decision.PROMOTE
    assert "no votes (0% of" in judgement.reason


def test_what_stands_in_a_block_came_next_to_each_other() -> None:
    trial = Trial(0, share=0.25)
    for number in range(9):  # s C s s s C s s s, of which the first came before both answered
        trial.reply(number % 4 == 1, liked=float(number == 2 or number % 4 == 1))
    assert trial.evidence().approval == pytest.approx((1 - 1 / 3, 1.0))


def test_only_the_time_in_which_both_answered_counts() -> None:
    trial = Trial(0)
    for number in range(10):
        trial.reply(number >= 6 and number % 2 == 0, liked=1.0)
    evidence = trial.evidence()
    assert (evidence.canary.replies, evidence.stable.replies) == (2, 2)
    assert evidence.stable.votes == 2


def test_nobody_decides_alone_where_there_are_others_and_a_lone_user_does() -> None:
    flood = Trial(0)
    for number in range(600):
        flood.reply(number % 2 == 0, liked=float(number % 2), user="troll" if number % 3 else f"user {number % 50}")
    evidence = flood.evidence()
    voters = 51
    assert evidence.canary.votes <= max(FEW, math.ceil(2 * RULES.most_votes / voters)) * voters
    trolls = Trial(0)
    for number in range(200):
        trolls.reply(number % 2 == 0, liked=float(number % 2), user="troll")
    for number in range(200):
        trolls.reply(number % 2 == 0, liked=0.5, user=f"user {number}")
    counted = trolls.evidence()
    assert counted.canary.votes == 100 + FEW, "each of the others once, and of the one a few"
    alone = Trial(0).run({"liked": 0.1, "user": "me"}, {"liked": 0.6, "user": "me"}, 200)  # type: ignore[dict-item]
    assert judge(alone, RULES).decision == Decision.ROLL_BACK


def test_one_receipt_is_one_vote_however_many_names_speak_on_it() -> None:
    trial = Trial(0)
    trial.reply(False, liked=0.5)
    trial.reply(True, liked=0.0)  # to nobody known: whoever has the receipt may give any name
    (own,) = (ballot for ballot in trial.ballots if ballot.response_id == "r2")
    trial.ballots += [replace(own, user=f"name {number}") for number in range(40)]
    for number in range(600):
        trial.reply(number % 2 == 0, liked=0.7, user=f"user {number % 301}")
    assert trial.evidence().canary.votes == 301
    assert judge(trial.evidence(), RULES).decision == Decision.PROMOTE


@pytest.mark.parametrize("made_up", [False, True])
def test_whoever_has_no_name_where_others_have_one_is_one_voter(made_up: bool) -> None:
    trial = Trial(0)
    for number in range(600):
        trial.reply(number % 2 == 0, liked=0.7, user=f"user {number}")
        if number < 80:
            trial.reply(number % 2 == 0, liked=number % 2, said=f"name {number}" if made_up else "")
    evidence = trial.evidence()
    # The first user's vote came before both answered.
    assert (evidence.canary.votes, evidence.stable.votes) == (299 + FEW, 300 + FEW)


def test_where_nobody_has_a_name_each_receipt_is_somebodys_own() -> None:
    trial = Trial(0)
    for number in range(200):
        trial.reply(number % 2 == 0, liked=0.5)
        trial.reply(number % 2 == 0, liked=0.5, said="a name that came with the vote")
    evidence = trial.evidence()
    assert (evidence.canary.votes, evidence.stable.votes) == (99 + FEW, 100 + FEW)


def test_names_that_disagree_on_one_reply_are_its_mean() -> None:
    trial = Trial(0)
    for ours in (False, True, False):  # the first one came before both answered
        trial.reply(ours, liked=0.0)
    trial.ballots = [
        Ballot("r3", "ann", "ann", 0.5, 3),
        *(Ballot("r2", "", name, score, at) for name, score, at in (("a", 1.0, 4), ("b", 0.0, 9), ("c", 0.0, 2))),
    ]
    evidence = trial.evidence()
    assert evidence.canary.votes == 1
    assert evidence.canary.approval == pytest.approx(1 / 3)
    assert evidence.approval == pytest.approx((1 / 3 - 0.5,))


def test_few_voters_do_not_starve_the_stable_side_of_a_small_share() -> None:
    trial = Trial(0, share=0.1)
    for number in range(1500):
        mine = trial.draw.random() < 0.1
        trial.reply(mine, liked=0.5, user=f"user {number % 20}")
    evidence = trial.evidence()
    assert len(evidence.approval) >= 0.9 * evidence.canary.votes


@given(st.randoms(use_true_random=False))
def test_the_order_in_which_votes_are_told_does_not_matter(draw: random.Random) -> None:
    trial = Trial(0)
    evidence = trial.run({"liked": 0.4, "user": "a"}, {"liked": 0.6, "user": "b"}, 60)  # type: ignore[dict-item]
    draw.shuffle(trial.ballots)
    assert trial.evidence() == evidence
