"""Several processes that improve one policy: data parallelism, over torch.distributed.

    mine             every rank samples, reads and differentiates its share of the batches
    union            what each found is given to all: replies, what was read of them
    add_gradients    they are summed; every rank takes the same step

All the rest every rank does from the same numbers, so that weights agree without being sent.
The critic is fitted by all of them: what it is fitted to is smaller than the sums of its regression, and to sum those
would cost more than it saves. One process, `ALONE`, has every batch and is given what it found.

The ranks talk by gloo, since the learner computes on the CPU. torchrun starts them, and starts all of them anew if one
is lost: a collective that waits for it raises `Lost` in the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from itertools import pairwise
from typing import ParamSpec, TypeVar

import torch
from torch import distributed as dist
from torch import nn

Key = TypeVar("Key")
T = TypeVar("T")
P = ParamSpec("P")

_TO_MEET = timedelta(minutes=5)
_TO_ANSWER = timedelta(days=20)
"""The others wait for rank 0, and rank 0 for votes; a rank that is lost closes its connections, which is seen at once.
gloo counts milliseconds in 32 bits: from 25 days on it would wait for ever, or not at all."""


class Lost(Exception):
    """A rank is gone, or did something else than the others: this one cannot go on either."""


class Ranks:
    """One process: there is nobody to share with."""

    index = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone reads votes, keeps checkpoints, decides and publishes."""
        return self.index == 0

    def mine(self, batches: Sequence[T]) -> Sequence[T]:
        """This rank's share: every `size`-th."""
        return batches[self.index :: self.size]

    def union(self, found: Mapping[Key, T]) -> dict[Key, T]:
        """What all ranks found; the keys of one rank are no other's."""
        return dict(found)

    def add_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Sum each weight's gradient over the ranks, in place; the sums have the same bits on all of them."""

    def told(self, value: T) -> T:
        """What rank 0 gives; what the others give is not looked at."""
        return value

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around what all ranks do, and what may fail on one of them: it raises Lost there, and ends that rank.

        The others would wait for it, and what it did next would be answered by what they did not do yet.
        """
        yield


ALONE = Ranks()


def _or_lost(collective: Callable[P, T]) -> Callable[P, T]:
    @wraps(collective)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return collective(*args, **kwargs)
        except RuntimeError as error:
            raise Lost(f"the connection to another rank has ended: {error}") from error

    return wrapped


class _Connected(Ranks):
    """One of several processes."""

    def __init__(self) -> None:
        self.index, self.size = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(timeout=_TO_ANSWER)

    @_or_lost
    def union(self, found: Mapping[Key, T]) -> dict[Key, T]:
        parts: list[dict[Key, T]] = [{} for _ in range(self.size)]
        dist.all_gather_object(parts, dict(found), group=self._group)
        return {key: value for part in parts for key, value in part.items()}

    @_or_lost
    def add_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        # A rank that had no batch has no gradients.
        ours = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        whole = torch.cat([gradient.flatten() for gradient in ours])
        dist.all_reduce(whole, group=self._group)
        for weight, summed in zip(weights, whole.split([weight.numel() for weight in weights]), strict=True):
            weight.grad = summed.view_as(weight)

    @_or_lost
    def told(self, value: T) -> T:
        said = [value if self.leads else None]
        dist.broadcast_object_list(said, src=0, group=self._group)
        return said[0]  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise Lost(f"rank {self.index} cannot go on with the others: {error}") from error


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun started, this process among them; `ALONE` if it did not, or started one.

    Raises Lost if they cannot reach each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_TO_MEET))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun's own store is one for all attempts: the addresses of dead ranks would be found in it.
            store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_TO_MEET)
        ranks = _Connected()
    except (RuntimeError, ValueError) as error:
        raise Lost(f"the ranks cannot reach each other: {error}") from error
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def evenly(rows: Sequence[int], at_most: int, of: int = 1) -> list[list[int]]:
    """The rows in their order, in batches whose lengths differ by one at most; their number is a multiple of `of`.

    None is empty: if there are not rows enough, each is a batch.
    """
    count = max(1, -(-len(rows) // (at_most * of))) * of
    edges = [len(rows) * number // count for number in range(count + 1)]
    return [list(rows[start:end]) for start, end in pairwise(edges) if start < end]
