"""How much each judgement weighs, and which prompts are rolled out: nobody steers alone (docs/influence.md).

A judgement weighs 1, and less where (each aspect by itself):

    reply    several are of one reply: together they weigh 1. Whoever holds a receipt may speak under many names
    prompt   one voter says more than REPEATS of near-identical prompts: together they weigh REPEATS
    voter    one voter has more than the cap: what is above is cut off. A voter is who asked for the reply, as the
             receipt binds it

The cap is the highest level t that is at most a share c of all that is left:

    t <= c' * sum_v min(mass_v, t)          c' = max(c, FAIR_SHARES / sum_v min(mass_v, 1))

Where there are few voters a share c of each would not be all: then nobody has more than FAIR_SHARES times the average.
A voter counts as 1 there; as less only where what he said he said together with others (500 annotators of one reply are
one). So nobody's mass is ever cut below FAIR_SHARES.

Everything here is a pure function of what was said, never of what it said: a minority is not an attacker.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from plaudit_learner.near_identical import near_identical
from plaudit_learner.reward.judgements import Judgement, Preference, Rating, Vote

Tokens = tuple[int, ...]
Said = TypeVar("Said", Vote, Rating, Preference)

FAIR_SHARES = 2.0
"""With few voters: nobody weighs more than so many times the average. At 1 all are cut down to the least eager."""
REPEATS = 3.0
"""What one voter says of near-identical prompts weighs at most so much: to ask again for another reply is ordinary."""


def weighed(
    votes: Sequence[Vote], preferences: Sequence[Preference], ratings: Sequence[Rating], *, cap: float
) -> tuple[list[Vote], list[Preference], list[Rating]]:
    """The same judgements with their weights, all kinds judged together; cap: see `weights`."""
    every: list[Judgement] = [*votes, *preferences, *ratings]
    weight = iter(weights(every, cap=cap))

    def with_weight(said: Sequence[Said]) -> list[Said]:
        return [replace(one, weight=next(weight)) for one in said]

    return with_weight(votes), with_weight(preferences), with_weight(ratings)


def weights(judgements: Sequence[Judgement], *, cap: float) -> list[float]:
    """Of each judgement. cap: the share c of all weight that one voter may have; 1: whatever they say.

    Raises ValueError if the cap is not in (0, 1].
    """
    if not 0 < cap <= 1:
        raise ValueError(f"cap is {cap}: give a share above 0 and at most 1")
    found = [0.0] * len(judgements)
    by_aspect: dict[str, list[int]] = defaultdict(list)
    for row, judgement in enumerate(judgements):
        by_aspect[judgement.aspect].append(row)
    for rows in by_aspect.values():
        for row, weight in zip(rows, _weights([judgements[row] for row in rows], cap), strict=True):
            found[row] = weight
    return found


def standing(judgements: Sequence[Judgement], *, cap: float, newest: int) -> tuple[float, float]:
    """How many full votes all of them amount to, and the `newest` by when they were said: the sums of their weights.

    A voter adds at most the cap's level to either. Kish's effective number (sum w)^2 / sum w^2 (1965), which is never
    below the sum, has no such bound: a thousand votes of weight 0.001 are a thousand by it.
    """
    weight = weights(judgements, cap=cap)
    order = sorted(range(len(judgements)), key=lambda row: judgements[row].at, reverse=True)
    return sum(weight), sum(weight[row] for row in order[:newest])


def spread(prompts: Mapping[str, Tokens], askers: Mapping[str, str], *, cap: float) -> dict[str, Tokens]:
    """The prompts to roll out, by key, in their order: of near-identical ones one, and of one asker's a capped share.

    prompts: the most recent first; of near-identical ones the oldest stays, of one asker's the most recent.
    askers: who asked a prompt first; missing or empty: unknown.
    """
    oldest_first = list(prompts)[::-1]
    who = dict(zip(prompts, voters([(askers.get(key, ""), key) for key in prompts]), strict=True))
    say = _capped([who[key] for key in oldest_first], [1.0] * len(prompts), cap)
    first = near_identical([prompts[key] for key in oldest_first], say)
    distinct = [key for number, key in enumerate(oldest_first) if first[number] == number]
    most = max(1, int(level(list(Counter(who[key] for key in distinct).values()), cap) + 1e-9))
    taken: Counter[Hashable] = Counter()
    kept = {}
    for key in reversed(distinct):
        taken[who[key]] += 1
        if taken[who[key]] <= most:
            kept[key] = prompts[key]
    return kept


def level(masses: Sequence[float], cap: float) -> float:
    """The highest t with t <= c' * sum min(mass, t), c' = max(cap, FAIR_SHARES / sum min(mass, 1)): one group's most.

    The largest mass, if no group is above its share. With the k largest cut off t = c' (k t + rest), and so
    t = c' rest / (1 - c' k): the least k will do whose next group stays below t.
    """
    largest = sorted(masses, reverse=True)
    share = max(cap, FAIR_SHARES / max(1.0, sum(min(mass, 1.0) for mass in largest)))
    rest = float(sum(largest))
    if share >= 1 or largest[0] <= share * rest:
        return max(largest, default=0.0)
    k = 0
    while largest[k] > share * rest / (1 - share * k):  # ends before 1 / share: `rest` holds the next one
        rest -= largest[k]
        k += 1
    return share * rest / (1 - share * k)


def voters(named: Sequence[tuple[str, Hashable]]) -> list[Hashable]:
    """Who counts as one voter, of (name or empty, what was said or asked).

    Those without a name cannot be told apart: together they are one voter. But where most have none the application
    does not name its users: then each stands for themselves, or a few names would outweigh the crowd.
    """
    crowd = 2 * sum(not name for name, _ in named) > len(named)
    return [name or (("unnamed", what) if crowd else "") for name, what in named]


def _weights(judgements: Sequence[Judgement], cap: float) -> list[float]:
    """Of judgements of one aspect."""
    # A judgement without a receipt is of a reply of its own.
    replies = [judgement.receipt or row for row, judgement in enumerate(judgements)]
    who = voters([(one.voter, reply) for one, reply in zip(judgements, replies, strict=True)])
    weight = _cut(replies, [1.0] * len(judgements), 1.0)
    alike = near_identical([judgement.item.prompt for judgement in judgements], _capped(who, weight, cap))
    # Only of one voter: what many people ask is no flood, and to damp it would give the word to whoever asks otherwise.
    return _capped(who, _cut(list(zip(who, alike, strict=True)), weight, REPEATS), cap)


def _capped(groups: Sequence[Hashable], weight: Sequence[float], cap: float) -> list[float]:
    """The weights, those of a group that has more than its cap cut down to it."""
    return _cut(groups, weight, level(list(_masses(groups, weight).values()), cap))


def _cut(groups: Sequence[Hashable], weight: Sequence[float], most: float) -> list[float]:
    """The weights, those of a group that has more than `most` cut down to it, in proportion."""
    mass = _masses(groups, weight)
    return [one * min(1.0, most / mass[group]) for group, one in zip(groups, weight, strict=True)]


def _masses(groups: Sequence[Hashable], weight: Sequence[float]) -> dict[Hashable, float]:
    mass: dict[Hashable, float] = defaultdict(float)
    for group, one in zip(groups, weight, strict=True):
        mass[group] += one
    return mass
