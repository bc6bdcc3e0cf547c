"""Places in the engine and in the queue: bounded, never idle while one waits, fair between callers and their users."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from plaudit_server import caller
from plaudit_server.admission import Admission, Place
from plaudit_server.caller import Caller
from plaudit_server.config import ServerSettings
from plaudit_server.metrics import ServerMetrics
from plaudit_server.refusal import Refusal

AHEAD = 2  # places are max_running and these


def make(*, running: int, waiting: int, healthy: Callable[[], bool] = lambda: True, **limits: Any) -> Admission:
    settings = ServerSettings(
        event_log="sqlite:-",
        policy_store="-",
        state_dir=Path("-"),
        receipt_keys=Path("-"),
        user_key_file=Path("-"),
        max_running=running,
        max_waiting=waiting,
        **limits,
    )
    return Admission(settings, healthy, ServerMetrics(CollectorRegistry()))


class Request:
    """One request of a caller's user."""

    def __init__(self, admission: Admission, name: str = "", user: str = "") -> None:
        """Raises Refusal."""
        token = caller.current.set(Caller(name, frozenset()))
        try:
            self.name = name
            self.user = user
            self._entered: AbstractContextManager[Place] = admission.enter(user)
            self.place = self._entered.__enter__()
        finally:
            caller.current.reset(token)

    @property
    def runs(self) -> bool:
        return self.place.answer.done() and self.place.answer.result() is None

    @property
    def refused(self) -> bool:
        return self.place.answer.done() and self.place.answer.result() is not None

    def leave(self) -> None:
        self._entered.__exit__(None, None, None)


async def test_a_free_place_goes_to_whoever_has_fewest() -> None:
    admission = make(running=2, waiting=20)
    greedy = [Request(admission, "greedy") for _ in range(12)]
    assert [request.runs for request in greedy] == [True] * 4 + [False] * 8
    modest = Request(admission, "modest")
    other = Request(admission, "other")
    greedy[0].leave()
    assert modest.runs, "though eight came before it"
    greedy[1].leave()
    assert other.runs
    modest.leave()
    assert greedy[4].runs, "the oldest, when there is nobody else"


async def test_users_of_one_caller_share_what_it_has() -> None:
    admission = make(running=2, waiting=20)
    greedy = [Request(admission, "app", "greedy") for _ in range(8)]
    ann = Request(admission, "app", "ann")
    elsewhere = Request(admission, "other app", "greedy")
    greedy[0].leave()
    assert elsewhere.runs, "callers come before users, and a user is its caller's"
    greedy[1].leave()
    assert ann.runs


async def test_a_full_queue_refuses_the_newest_of_whoever_has_most() -> None:
    admission = make(running=2, waiting=4)
    greedy = [Request(admission, "greedy") for _ in range(6)]
    with pytest.raises(Refusal, match="the most that this server takes"):
        Request(admission, "greedy")
    modest = Request(admission, "modest")
    assert [request.refused for request in greedy] == [False] * 5 + [True]
    with pytest.raises(Refusal) as refused:
        await greedy[5].place.turn()
    assert refused.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.retry_after is not None
    greedy[5].leave()  # leaves once
    greedy[0].leave()
    assert modest.runs
    assert admission.admitted == 5


async def test_a_caller_that_goes_away_while_it_waits_leaves_its_place() -> None:
    admission = make(running=1, waiting=5)
    running = [Request(admission) for _ in range(1 + AHEAD)]

    async def wait() -> None:
        with admission.enter("") as place:
            await place.turn()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    running[0].leave()  # in the same step: its turn comes to one who is not there to take it
    last = Request(admission)
    await asyncio.gather(waiting, return_exceptions=True)
    assert last.runs
    assert admission.admitted == 1 + AHEAD


async def test_limits_of_callers_and_of_users() -> None:
    admission = make(running=4, waiting=4, max_requests_per_caller=3, max_requests_per_user=2)
    ann = [Request(admission, "app", "ann") for _ in range(2)]
    with pytest.raises(Refusal, match="2 requests of this user"):
        Request(admission, "app", "ann")
    others = [Request(admission, "app", "bob")]
    with pytest.raises(Refusal, match="3 requests of this caller"):
        Request(admission, "app", "cid")
    others.append(Request(admission, "other app", "ann"))
    ann[0].leave()
    others.append(Request(admission, "app", "ann"))
    assert all(request.runs for request in others)


async def test_tokens_are_reserved_and_charged_as_used() -> None:
    admission = make(running=4, waiting=4, tokens_per_minute_per_user=1000, tokens_per_minute_per_caller=1500)
    first = Request(admission, "app", "ann")
    first.place.reserve(900)
    second = Request(admission, "app", "ann")
    with pytest.raises(Refusal, match="this user has used up its 1,000 tokens a minute") as refused:
        second.place.reserve(900)
    assert refused.value.retry_after == pytest.approx(48, abs=1)
    second.leave()
    bob = Request(admission, "app", "bob")
    with pytest.raises(Refusal, match="this caller has used up its 1,500") as refused:
        bob.place.reserve(900)
    assert refused.value.retry_after == pytest.approx(12, abs=1)
    bob.leave()
    first.place.spent = 50
    first.leave()
    for user, tokens in (("ann", 900), ("bob", 500)):
        Request(admission, "app", user).place.reserve(tokens)


async def test_while_the_engine_is_down_or_the_server_stops() -> None:
    up = False
    admission = make(running=1, waiting=1, healthy=lambda: up)
    with pytest.raises(Refusal, match="being restarted"):
        Request(admission)
    up = True
    request = Request(admission)
    draining = asyncio.create_task(admission.drain(60))
    await asyncio.sleep(0)
    with pytest.raises(Refusal, match="stopping"):
        Request(admission)
    request.leave()
    await draining


Steps = st.lists(st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 1)), st.integers(0, 30)), max_size=80)


@given(Steps, st.integers(1, 3), st.integers(0, 5))
async def test_whatever_comes_and_goes(steps: list[Any], running: int, waiting: int) -> None:
    admission = make(running=running, waiting=waiting)
    here: list[Request] = []
    for step in steps:
        if isinstance(step, int):
            if here:
                here.pop(step % len(here)).leave()
        else:
            name, user = str(step[0]), str(step[1])
            callers = Counter([name, *(request.name for request in here)])
            users = Counter([(name, user), *((request.name, request.user) for request in here)])
            mine = callers[name], users[name, user]
            theirs = {
                request: (callers[request.name], users[request.name, request.user])
                for request in here
                if not request.runs
            }
            try:
                here.append(Request(admission, name, user))
            except Refusal:
                assert len(here) == running + waiting
                assert all(mine >= other for other in theirs.values()), "it had most of those who wait"
            for gone in [request for request in here if request.refused]:
                assert theirs[gone] == max(theirs.values()) > mine
                gone.leave()
                here.remove(gone)
        runs = sum(request.runs for request in here)
        assert admission.admitted == len(here) <= running + waiting
        assert runs == min(len(here), running + AHEAD), "no place is empty while one waits"
    for request in here:
        request.leave()
    assert admission.admitted == 0
    assert not admission._admitted_of
    assert not admission._running_of
