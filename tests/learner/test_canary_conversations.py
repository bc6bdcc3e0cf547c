"""A conversation is drawn as one, and so counts as one; where there are none the draw may leave too few to tell."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from plaudit_learner.canary.evidence import FEW, Evidence
from plaudit_learner.canary.judge import ALPHA, Decision, judge
from tests.learner.test_canary_blocks import binomial
from tests.learner.test_canary_judge import ARM, EVEN, RULES, Trial


def test_what_is_said_in_a_conversation_is_its_mean_in_the_place_of_the_first() -> None:
    trial = Trial(0)
    for ours, conversation, liked in (
        (False, "", 0.0),  # before both answered
        (True, "a", 1.0),
        (False, "b", 1.0),
        (True, "a", 0.0),
        (True, "a", 0.0),
        (False, "", 0.0),
        (True, "c", 1.0),
        (False, "b", 0.0),
        (False, "", 1.0),  # one of its own
    ):
        trial.reply(ours, liked=liked, conversation=conversation)
    evidence = trial.evidence()
    assert evidence.votes == (((1 / 3,), (0.5,)), ((1.0,), (0.0,)))
    assert (evidence.canary.votes, evidence.stable.votes) == (2, 3)
    assert evidence.canary.replies == 4
    assert sorted(evidence.drawn) == [1, 1, 1, 2, 3]


def test_a_conversation_that_servers_put_on_both_sides_is_one_on_each() -> None:
    trial = Trial(0)
    for number in range(6):
        trial.reply(number % 2 == 0, liked=float(number % 2), conversation="a")
    evidence = trial.evidence()
    assert evidence.votes == (((0.0,), (1.0,)),)
    assert evidence.drawn == (5,)


def test_nobody_speaks_for_others_by_joining_their_conversations() -> None:
    trial = Trial(0)
    for number in range(300):
        trial.reply(number % 2 == 0, liked=1.0, user=f"user {number}", conversation=f"conversation {number}")
        if number % 2 == 0:
            for _ in range(4):
                trial.reply(True, liked=0.0, user="troll", conversation=f"conversation {number}")
    evidence = trial.evidence()
    # The first reply of all came before both answered.
    assert (evidence.canary.votes, evidence.stable.votes) == (149 + FEW, 150)
    assert evidence.canary.approval == pytest.approx(149 / (149 + FEW))
    assert judge(evidence, RULES).decision == Decision.PROMOTE


def test_errors_times_and_votes_are_those_of_conversations() -> None:
    trial = Trial(0)
    trial.reply(False, liked=1.0, seconds=1.0, conversation="a")
    trial.reply(True, liked=1.0, seconds=1.0, conversation="b")
    trial.reply(False, liked=1.0, rate=0.0, seconds=2.0, conversation="a", failing=1.0)
    trial.reply(True, liked=1.0, rate=0.0, seconds=3.0, conversation="b")
    # Another stable one, since what came before both answered does not count.
    trial.reply(False, liked=1.0, seconds=1.0, conversation="a")
    evidence = trial.evidence()
    assert evidence.voted == (0.5 - 0.5 * 0.5,)
    assert evidence.errors == (0.5,)
    assert evidence.punctual == (1.0,), "2 s beside 1.5 s, though 3 s would be late beside 1"
    trial.reply(True, liked=1.0, seconds=3.0, conversation="b")
    assert trial.evidence().punctual == (-1.0,)


def test_equal_versions_on_which_people_differ_are_not_rolled_back() -> None:
    """Some people like everything, some nothing, and each says so five times; as five votes, many were rolled back."""
    wrong = 0
    for seed in range(40):
        trial = Trial(seed)
        for number in range(230):
            ours, liked = trial.draw.random() < 0.5, trial.draw.choice((0.05, 0.95))
            for _ in range(5):
                trial.reply(ours, liked=liked, user=f"user {number}", conversation=f"conversation {number}")
        wrong += judge(trial.evidence(), RULES).decision == Decision.ROLL_BACK
    most = ALPHA["approval"] + ALPHA["last look"]
    assert wrong <= next(k for k in range(41) if binomial(k, 40, most) >= 0.999)


def test_one_conversation_that_always_fails_is_one_failure() -> None:
    def trial(conversation: str) -> Evidence:
        seen = Trial(0)
        for number in range(60):
            seen.reply(False, liked=1.0, rate=0.0, conversation=f"s{number}")
            where, failing = (f"c{number}", 0.0) if number % 2 else (conversation.format(number), 1.0)
            seen.reply(True, liked=1.0, rate=0.0, failing=failing, conversation=where)
        return seen.evidence()

    assert judge(trial("stuck"), RULES).decision == Decision.GO_ON
    many = judge(trial("stuck {}"), RULES)
    assert many.decision == Decision.ROLL_BACK
    assert many.reason.startswith("more of its replies end in an error: ")


def served(drawn: tuple[int, ...], ours: int, share: float = 0.1) -> Evidence:
    """At the limit, with hardly a vote."""
    canary = replace(ARM, replies=ours, votes=0)
    stable = replace(ARM, replies=sum(drawn) - ours, votes=0)
    return Evidence(canary, stable, share, sum(drawn), drawn, (), (), (), ())


def test_few_replies_are_no_fault_where_the_draw_may_be_the_reason() -> None:
    """10,100 replies to two dozen users without conversations' ids, or in as many conversations."""
    one_user = judge(served((420,) * 24 + (20,), 420), RULES)
    assert one_user.decision == Decision.PROMOTE
    conversations = judge(served((1,) * 10_100, 420), RULES)
    assert conversations.decision == Decision.ROLL_BACK
    assert conversations.reason.startswith("of about 1010 replies that were to be its own it gave few: ")
    nobody = judge(served((420,) * 24 + (20,), 0), RULES)
    assert nobody.decision == Decision.ROLL_BACK
    assert nobody.reason.startswith("too few of 10100 replies were its own to tell: ")


@pytest.mark.parametrize("units", [12, 60, 200, 1000])
def test_who_is_seldom_drawn_is_seldom_taken_for_broken(units: int) -> None:
    draw = random.Random(units)
    wrong = 0
    for _ in range(1000):
        replies = tuple(draw.choice((1, 1, 2, 5, 30)) * 10_000 // (8 * units) for _ in range(units))
        ours = sum(n for n in replies if draw.random() < 0.1)
        wrong += judge(served(replies, ours), RULES).reason.startswith("of about")
    assert wrong <= 5, "1 at most is expected"


def test_the_whole_is_at_most_one_in_twenty() -> None:
    assert sum(ALPHA.values()) == pytest.approx(0.05)
    assert judge(EVEN, RULES).decision == Decision.PROMOTE
