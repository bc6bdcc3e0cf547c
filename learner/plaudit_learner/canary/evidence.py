"""What speaks for and against a canary: its replies and votes, each set against those of the stable version next to it.

    stable   s s s s   s s s s   s s s …      blocks of k, in the order of time; k is how many of the stable version's
    canary      c         c         c   …     come with one of the canary's, at its share: (1 - share) / share
                ▼         ▼         ▼
               c - mean of its k s            a difference in [-1, 1], on the average 0 if the two are alike

Only what was drawn counts: replies of the two versions that nobody asked for by name, from the moment on from which
both answer. What stands in a block is of about the same time, so an hour in which everything is liked less is no
difference.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from plaudit_learner.experience.influence import voters
from plaudit_learner.experience.store import Ballot, Exposure

FEW = 3
"""Votes of one voter that always count, on each side. So many opposite pairs, at the beginning, are worth 1.3 of the
3.5 nats that decide: nobody decides alone where there are others. (Five are worth 2.4: chance often did the rest.)"""
TOO_SLOW = 1.5
"""A reply is late if it takes more than this many times as long as the stable version's beside it."""
TOO_SELDOM = 0.5
"""A version is voted on too seldom if less than this share of the stable version's votes, a reply, come in."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the two versions, while both answered."""

    replies: int
    votes: int
    """Those that count: one of a reply, and at most so many of one voter."""
    approval: float
    """Their mean, 0 to 1; a rating of 1 to 5 is 0, 1/4, … 1. 0 if there are none."""
    voted: int
    """Replies that anybody voted on."""
    errors: int
    """Replies that ended in an error of the engine."""
    seconds: float
    """The median reply's duration; 0 if there are none."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Made from the store; read by the judge. Differences are good ones if positive: canary against stable."""

    canary: Arm
    stable: Arm
    share: float
    """At which the canary is drawn."""
    begun: int
    """Replies of both since the trial began, those included from before both answered."""
    approval: tuple[float, ...]
    voted: tuple[float, ...]
    """1 if the canary's reply was voted on, less half of the share of its block's replies that were."""
    errors: tuple[float, ...]
    punctual: tuple[float, ...]
    """1 if the canary's reply came no later than it may, else -1."""


def weigh(
    canary: Sequence[Exposure], stable: Sequence[Exposure], ballots: Iterable[Ballot], share: float, *, most_votes: int
) -> Evidence:
    """Set one against the other.

    canary, stable: replies drawn, in the order in which they began. ballots: the votes that stand on them.
    share: above 0 and below 1. most_votes: of one side, after which the trial ends; see `_few_of_each`.
    """
    begun = len(canary) + len(stable)
    if canary and stable:
        since = max(canary[0].at, stable[0].at)
        canary, stable = ([reply for reply in arm if reply.at >= since] for arm in (canary, stable))
    block = max(1, round((1 - share) / share))
    cast = _one_of_each_reply(sorted(ballots, key=lambda ballot: (ballot.at, ballot.response_id, ballot.user)))
    names = voters([(ballot.asker, ballot.user or ballot.response_id) for ballot in cast])
    who = {ballot.response_id: name for ballot, name in zip(cast, names, strict=True)}
    ids = [{reply.response_id for reply in arm} for arm in (canary, stable)]
    ours, theirs = (
        _few_of_each([ballot for ballot in cast if ballot.response_id in arm], who, most_votes, times)
        for arm, times in zip(ids, (1, block), strict=True)
    )
    voted = {ballot.response_id for ballot in cast}

    def paired(difference: Callable[[Exposure, Exposure], float]) -> tuple[float, ...]:
        return tuple(
            statistics.fmean(difference(reply, other) for other in beside)
            for reply, beside in blocks(canary, stable, block)
        )

    return Evidence(
        canary=_arm(canary, ours, voted),
        stable=_arm(stable, theirs, voted),
        share=share,
        begun=begun,
        approval=tuple(
            ballot.score - statistics.fmean(other.score for other in beside)
            for ballot, beside in blocks(ours, theirs, block)
        ),
        voted=paired(lambda c, s: (c.response_id in voted) - TOO_SELDOM * (s.response_id in voted)),
        errors=paired(lambda c, s: float(s.failed) - float(c.failed)),
        punctual=paired(lambda c, s: -1.0 if _late(c, s) else 1.0),
    )


def blocks(ours: Sequence[T], theirs: Sequence[T], size: int) -> Iterable[tuple[T, Sequence[T]]]:
    """Each of ours with its own `size` of theirs, as far as both reach."""
    for number in range(min(len(ours), len(theirs) // size)):
        yield ours[number], theirs[number * size : (number + 1) * size]


def _late(ours: Exposure, theirs: Exposure) -> bool:
    """Whether our reply took too long beside theirs, which may have been shorter.

    Of a shorter reply no more is asked than that it takes no longer than the other: the time to the first token is in
    both, so seconds per token would speak against whoever is brief.
    """
    if not (ours.seconds and theirs.seconds and ours.tokens and theirs.tokens):
        return False
    return ours.seconds > TOO_SLOW * theirs.seconds * max(1.0, ours.tokens / theirs.tokens)


def _one_of_each_reply(cast: Sequence[Ballot]) -> list[Ballot]:
    """What is said of a reply weighs one vote, as in `experience/influence.py`: the mean, in the first one's place.

    Whoever holds the receipt of a reply that was given to nobody known may speak under many names.
    """
    said: dict[str, list[Ballot]] = defaultdict(list)
    for ballot in cast:
        said[ballot.response_id].append(ballot)
    return [replace(every[0], score=statistics.fmean(one.score for one in every)) for every in said.values()]


def _few_of_each(cast: Sequence[Ballot], who: Mapping[str, Hashable], most_votes: int, times: int) -> list[Ballot]:
    """The first few votes of each voter; nobody counts for more than twice an equal part of the votes that decide.

    Where few people vote, each counts for more, or a deployment with one user would never decide. `who` cast the vote
    on a reply is as in `experience/influence.py`. `times` as many count where `times` as many decide.
    """
    voted = [who[ballot.response_id] for ballot in cast]
    few = times * max(FEW, math.ceil(2 * most_votes / max(1, len(set(voted)))))
    counted: Counter[Hashable] = Counter()
    kept = []
    for ballot, voter in zip(cast, voted, strict=True):
        counted[voter] += 1
        if counted[voter] <= few:
            kept.append(ballot)
    return kept


def _arm(replies: Sequence[Exposure], votes: Sequence[Ballot], voted: set[str]) -> Arm:
    return Arm(
        replies=len(replies),
        votes=len(votes),
        approval=statistics.fmean(ballot.score for ballot in votes) if votes else 0.0,
        voted=sum(reply.response_id in voted for reply in replies),
        errors=sum(reply.failed for reply in replies),
        seconds=statistics.median(reply.seconds for reply in replies) if replies else 0.0,
    )
