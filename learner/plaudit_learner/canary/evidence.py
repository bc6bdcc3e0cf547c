"""What speaks for and against a canary: its replies and votes, each set against those of the stable version next to it.

    votes ──▶ one of a reply ──▶ one of a conversation ──▶ a few of a voter ──┬─▶ blocks (`blocks.py`) ──▶ differences
    replies ────────────────────▶ one of a conversation ──────────────────────┘

Of each block the difference of the two means counts: in [-1, 1], on the average 0 if the two are alike. What stands in
a block is of about the same time, so an hour in which everything is liked less is no difference.

A conversation is one, however many replies and votes it has, since it is drawn as one: the ten votes of somebody who is
never content are all on one side, by one throw of the dice. Where the application gives conversations no ids each reply
is one, as nothing better is known.

Only what was drawn counts: replies of the two versions that nobody asked for by name, from the moment on from which
both answer.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from plaudit_learner.canary.blocks import blocks, per_block
from plaudit_learner.canary.deal import difference
from plaudit_learner.experience.influence import voters
from plaudit_learner.experience.on_trial import Ballot, Exposure

FEW = 3
"""Votes of one voter that always count, on each side. So many opposite pairs, at the beginning, are worth 1.3 of the
3.5 nats that decide: nobody decides alone where there are others. (Five are worth 2.4: chance often did the rest.)"""
TOO_SLOW = 1.5
"""A reply is late if it takes more than this many times as long as the stable version's beside it."""
TOO_SELDOM = 0.5
"""A version is voted on too seldom if less than this share of the stable version's votes, a reply, come in."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the two versions, while both answered."""

    replies: int
    votes: int
    """Those that count: one of each asker in a conversation, and at most so many of one voter."""
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
    drawn: tuple[int, ...]
    """Replies of each that was drawn for itself: a conversation; without its id a user; without both a reply."""
    votes: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    """Of each block the scores of the canary's votes and of the stable version's; one side has exactly one."""
    voted: tuple[float, ...]
    """Of each block, the replies voted on: the canary's share of them, less half of the stable version's."""
    errors: tuple[float, ...]
    punctual: tuple[float, ...]
    """Of each block: 1 if the canary's replies came no later than they may, -1 if late."""

    @property
    def approval(self) -> tuple[float, ...]:
        """Of each block: the canary's mean vote, less the stable version's."""
        return tuple(difference(ours, theirs) for ours, theirs in self.votes)


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation's replies as one, in the place of the first."""

    at: int
    response_id: str
    voted: float
    """Share of the replies; likewise `failed`."""
    failed: float
    seconds: float
    """The mean, and so are the tokens, of those replies of which both are known; 0: of none."""
    tokens: float


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
    cast = _one_of_each_reply(sorted(ballots, key=lambda ballot: (ballot.at, ballot.response_id, ballot.user)))
    names = voters([(ballot.asker, ballot.user or ballot.response_id) for ballot in cast])
    who = {ballot.response_id: name for ballot, name in zip(cast, names, strict=True)}
    ours, theirs = (
        _few_of_each(_one_of_each_conversation(cast, arm), who, most_votes, times)
        for arm, times in zip((canary, stable), per_block(share), strict=True)
    )
    voted = {ballot.response_id for ballot in cast}
    beside = list(blocks(_talks(canary, voted), _talks(stable, voted), share))

    def paired(better: Callable[[_Talk, _Talk], float]) -> tuple[float, ...]:
        return tuple(statistics.fmean(better(c, s) for c in mine for s in other) for mine, other in beside)

    return Evidence(
        canary=_arm(canary, ours, voted),
        stable=_arm(stable, theirs, voted),
        share=share,
        begun=begun,
        drawn=tuple(Counter(r.conversation or r.user or r.response_id for r in (*canary, *stable)).values()),
        votes=tuple(
            (tuple(ballot.score for ballot in mine), tuple(ballot.score for ballot in other))
            for mine, other in blocks(ours, theirs, share)
        ),
        voted=paired(lambda c, s: c.voted - TOO_SELDOM * s.voted),
        errors=paired(lambda c, s: s.failed - c.failed),
        punctual=paired(lambda c, s: -1.0 if _late(c, s) else 1.0),
    )


def _talks(replies: Sequence[Exposure], voted: set[str]) -> list[_Talk]:
    """What was said in each conversation, in the order in which they began."""
    said: dict[str, list[Exposure]] = defaultdict(list)
    for reply in replies:
        said[_conversation(reply)].append(reply)
    talks = []
    for every in said.values():
        timed = [reply for reply in every if reply.seconds and reply.tokens]
        talks.append(
            _Talk(
                at=every[0].at,
                response_id=every[0].response_id,
                voted=sum(reply.response_id in voted for reply in every) / len(every),
                failed=sum(reply.failed for reply in every) / len(every),
                seconds=sum(reply.seconds for reply in timed) / len(timed) if timed else 0.0,
                tokens=sum(reply.tokens for reply in timed) / len(timed) if timed else 0.0,
            )
        )
    return talks


def _conversation(reply: Exposure) -> str:
    """Its name; a reply without one is one of its own."""
    return f"conversation {reply.conversation}" if reply.conversation else f"reply {reply.response_id}"


def _late(ours: _Talk, theirs: _Talk) -> bool:
    """Whether our replies took too long beside theirs, which may have been shorter.

    Of a shorter reply no more is asked than that it takes no longer than the other: the time to the first token is in
    both, so seconds per token would speak against whoever is brief.
    """
    if not (ours.seconds and theirs.seconds):
        return False
    return ours.seconds > TOO_SLOW * theirs.seconds * max(1.0, ours.tokens / theirs.tokens)


def _one_of_each_reply(cast: Sequence[Ballot]) -> list[Ballot]:
    """What is said of a reply weighs one vote, as in `experience/influence.py`.

    Whoever holds the receipt of a reply that was given to nobody known may speak under many names.
    """
    return _merged(cast, lambda ballot: ballot.response_id)


def _one_of_each_conversation(cast: Sequence[Ballot], replies: Sequence[Exposure]) -> list[Ballot]:
    """Of the votes on these replies: what one asker says in a conversation weighs one vote, too.

    Of each asker, so that nobody speaks for others by joining their conversations: his few votes are still his.
    """
    conversation = {reply.response_id: _conversation(reply) for reply in replies}
    ours = [ballot for ballot in cast if ballot.response_id in conversation]
    return _merged(ours, lambda ballot: (conversation[ballot.response_id], ballot.asker))


def _merged(cast: Sequence[Ballot], of: Callable[[Ballot], Hashable]) -> list[Ballot]:
    """Those of the same as one vote: their mean, in the first one's place."""
    said: dict[Hashable, list[Ballot]] = defaultdict(list)
    for ballot in cast:
        said[of(ballot)].append(ballot)
    return [
        replace(every[0], score=statistics.fmean(one.score for one in every)) if len(every) > 1 else every[0]
        for every in said.values()
    ]


def _few_of_each(cast: Sequence[Ballot], who: Mapping[str, Hashable], most_votes: int, times: float) -> list[Ballot]:
    """The first few votes of each voter; nobody counts for more than twice an equal part of the votes that decide.

    Where few people vote, each counts for more, or a deployment with one user would never decide. `who` cast the vote
    on a reply is as in `experience/influence.py`. `times` as many count where `times` as many decide.
    """
    voted = [who[ballot.response_id] for ballot in cast]
    few = math.ceil(times * max(FEW, math.ceil(2 * most_votes / max(1, len(set(voted))))))
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
