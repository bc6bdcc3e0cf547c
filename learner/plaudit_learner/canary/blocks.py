"""Which votes, or replies, of the two versions stand beside each other: those that came at about the same time.

    stable   s s s s   s s s s   s s s …      share 0.2: one of the canary's with four of the stable version's
    canary      c         c         c   …

With a share s of at most a half, one of the canary's stands beside (1 - s) / s of the stable version's; above a half,
one of the stable version's beside s / (1 - s) of the canary's. Where that is no whole number the blocks' sizes take
turns: 1, 2, 1, 2 … at 0.4. Rounded to the same size for all, one side's would be used up faster than they come, and
what came early would stand beside what came late: a drift of what people like looks like a difference then.

For the same reason nothing waits for long. Of one side, say of a canary that is seldom voted on, fewer come than its
share. What the other side has too much of, beyond SLACK blocks, is left out, the oldest first.

What stands where depends on who was drawn, and when; never on what was said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Protocol, TypeVar

SLACK = 8
"""Blocks' worth of one side's that may wait for the other's: chance alone seldom makes more wait."""


class Timed(Protocol):
    """What stands in a block."""

    @property
    def at(self) -> int:
        """When it came; any unit."""

    @property
    def response_id(self) -> str:
        """Settles what came first of two at the same time."""


T = TypeVar("T", bound=Timed)
Block = tuple[Sequence[T], Sequence[T]]


def per_block(share: float) -> tuple[float, float]:
    """How many of the canary's and of the stable version's stand in a block, on the average; one of them is 1."""
    return max(1.0, share / (1 - share)), max(1.0, (1 - share) / share)


def blocks(ours: Sequence[T], theirs: Sequence[T], share: float) -> Iterator[Block[T]]:
    """The canary's and the stable version's of each block, in order, as far as both reach; one side's is one."""
    sizes = per_block(share)
    merged = [(one.at, one.response_id, side, one) for side, arm in enumerate((ours, theirs)) for one in arm]
    merged.sort(key=itemgetter(0, 1, 2))
    waiting: tuple[list[T], list[T]] = ([], [])
    number = 0
    mine, other = needed = _needed(number, sizes)
    for _, _, side, one in merged:
        waiting[side].append(one)
        if len(waiting[0]) >= mine and len(waiting[1]) >= other:
            yield waiting[0][:mine], waiting[1][:other]
            del waiting[0][:mine], waiting[1][:other]
            number += 1
            mine, other = needed = _needed(number, sizes)
        elif len(waiting[side]) > SLACK * needed[side]:
            del waiting[side][0]


def _needed(number: int, sizes: tuple[float, float]) -> tuple[int, int]:
    """Of the canary's and of the stable version's, in that block; over the blocks the sizes are kept to."""
    mine, other = (round((number + 1) * size) - round(number * size) for size in sizes)
    return mine, other
