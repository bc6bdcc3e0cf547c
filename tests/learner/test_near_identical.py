"""What counts as the same prompt: for weights, for rollouts, and for what is held out."""

from __future__ import annotations

from plaudit_learner.near_identical import near_identical
from plaudit_learner.policy import PromptReply
from plaudit_learner.reward.judgements import Vote, prompt_folds
from tests.learner.test_influence import prompt


def test_near_identical_prompts() -> None:
    system, base = tuple(range(20_000, 20_100)), prompt(1, 20)
    asked = [
        base,
        (*base, 1),  # a word more
        (*base[:10], 2, *base[11:]),  # a word changed in the middle: 15 of 21 shingles
        prompt(2, 20),
        (*prompt(2, 10), *base[10:]),  # half of one, half of the other
        base,
        (5,),
        (5,),
        (6,),
        *(prompt(100 + i) for i in range(11)),
    ]
    expected = [0, 0, 0, 3, 4, 0, 6, 6, 8, *range(9, 20)]
    assert near_identical(asked, [1.0] * 20) == expected
    # What all begin with, be it ever so long, makes no two alike.
    assert near_identical([(*system, *one) for one in asked], [1.0] * 20) == expected
    assert near_identical([], []) == []


def test_no_chain_joins_what_is_far_apart() -> None:
    """Each is like the one before it; the last shares nothing with the first."""
    one, other = prompt(1, 40), prompt(2, 40)
    chain = [(*other[:i], *one[i:]) for i in range(0, 41, 2)]
    groups = near_identical([*chain, *(prompt(100 + i, 40) for i in range(60))], [1.0] * 81)
    assert groups[20] != groups[0]
    assert len(set(groups[:21])) >= 4


def test_a_question_with_another_date_is_held_out_with_it() -> None:
    """An application that writes the date into its system prompt asks one question in many prompts."""
    system = tuple(range(30_000, 30_040))
    votes = [
        Vote(PromptReply((*system, 40_000 + day, *prompt(question, 30)), (1, day), True), day % 2 == 0)
        for day in range(12)
        for question in range(20)
    ]
    folds = prompt_folds(votes).view(12, 20)
    assert (folds == folds[0]).all(), "wherever its first prompt is"
    assert len(folds[0].unique()) > 1
