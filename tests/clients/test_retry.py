"""Whether, where and when a call is made again: what the server asks for, what the deadline leaves, what has begun."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from plaudit.v1 import loop_pb2
from plaudit.v1.loop_pb2_grpc import LoopServiceServicer
from plaudit_client import (
    AsyncClient,
    DeadlineExceeded,
    Durability,
    FinishReason,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
)
from plaudit_client.channel import targets
from plaudit_client.retry import Attempts, back_off
from plaudit_client.servers import Servers
from tests.clients.scripted import Context, Failure, Script, serving

Code = grpc.StatusCode
AWAY = Unavailable("away")


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    """Two, neither of which is there."""
    async with Servers([grpc.aio.insecure_channel(f"127.0.0.1:{port}") for port in (1, 2)]) as made:
        yield made


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE])
async def test_a_chat_that_was_refused_is_asked_for_again_when_the_server_says(
    client: AsyncClient, script: Script, code: Code
) -> None:
    script.failures = [Failure(code, retry_after=0.4), Failure(Code.UNAVAILABLE)]
    began = time.monotonic()
    reply = client.chat("Hi")
    assert await reply.read() == "HI "
    assert time.monotonic() - began >= 0.4
    assert len(script.chats) == 3
    assert reply.receipt == "receipt-3"


async def test_what_a_server_that_stops_cuts_off_is_said_again(client: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.CANCELLED)]
    assert await client.chat("Hi").read() == "HI "
    script.failures = [Failure(Code.CANCELLED)]
    assert await client.submit_feedback("r", thumb="up") is Durability.EVENT_LOG
    assert (len(script.chats), len(script.feedback)) == (2, 2)


async def test_a_refusal_without_a_time_is_final(client: AsyncClient, script: Script) -> None:
    """gRPC says the same of a message that is too large."""
    script.failures = [Failure(Code.RESOURCE_EXHAUSTED)]
    with pytest.raises(ResourceExhausted):
        await client.chat("Hi").read()
    assert len(script.chats) == 1


async def test_what_would_end_after_the_deadline_is_not_waited_for(client: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.RESOURCE_EXHAUSTED, retry_after=30)]
    began = time.monotonic()
    with pytest.raises(ResourceExhausted) as refused:
        await client.chat("Hi", timeout=20).read()
    assert refused.value.retry_after == 30
    assert time.monotonic() - began < 20
    assert len(script.chats) == 1


async def test_the_deadline_is_one_for_all_attempts(client: AsyncClient, script: Script) -> None:
    script.failures, script.endless = [Failure(Code.RESOURCE_EXHAUSTED, retry_after=0.5)], True
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await client.chat("Hi", timeout=1.0).read()
    assert 0.9 < time.monotonic() - began < 1.5, "the second attempt had what the first had left"


async def test_after_its_first_token_no_chat_is_begun_again(client: AsyncClient, script: Script) -> None:
    script.breaks_after = 1
    reply = client.chat("one two three")
    with pytest.raises(Unavailable):
        await reply.read()
    assert (reply.text, len(script.chats), reply.finish_reason) == ("ONE ", 1, None)


async def test_before_it_a_chat_may_break_and_begin_again(client: AsyncClient, script: Script) -> None:
    script.breaks_after = 0  # after `started`
    reply = client.chat("one two")
    assert await reply.read() == "ONE TWO "
    assert (reply.receipt, len(script.chats)) == ("receipt-2", 2), "the receipt is the reply's, not the broken one's"


async def test_a_chat_that_waits_can_be_cancelled(client: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.RESOURCE_EXHAUSTED, retry_after=50)]
    reply = client.chat("Hi")
    reading = asyncio.create_task(reply.read())
    async with asyncio.timeout(10):
        while not script.chats:
            await asyncio.sleep(0.01)
        reply.cancel()
        assert await reading == ""
    assert (reply.finish_reason, len(script.chats)) == (FinishReason.CANCELLED, 1)


async def test_what_changes_a_version_is_said_once(client: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.UNAVAILABLE)]
    with pytest.raises(Unavailable):
        await client.promote_policy("v1")
    assert len(script.reasons) == 1


async def test_what_only_reads_is_asked_again(client: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.UNAVAILABLE)]
    assert (await client.list_policies()).serving_version == "v0"
    script.failures = [Failure(Code.UNAVAILABLE)]
    assert (await client.get_policy("v1")).version == "v1"


class Learning(Script, LoopServiceServicer):
    """Has a loop to show, too."""

    async def GetLoop(self, request: loop_pb2.GetLoopRequest, context: Context) -> loop_pb2.GetLoopResponse:
        await self._fail_if_told(context)
        return loop_pb2.GetLoopResponse()

    async def WatchLoop(
        self, request: loop_pb2.WatchLoopRequest, context: Context
    ) -> AsyncIterator[loop_pb2.WatchLoopResponse]:
        await self._fail_if_told(context)
        yield loop_pb2.WatchLoopResponse()


async def test_so_is_the_loop() -> None:
    script = Learning()
    async with serving(script) as address, AsyncClient(address) as client:
        script.failures = [Failure(Code.UNAVAILABLE)]
        assert (await client.get_loop()).learner is None
        script.failures = [Failure(Code.UNAVAILABLE)]
        assert [loop.learner async for loop in client.watch_loop()] == [None]


async def test_a_watch_is_begun_again_until_it_has_begun(client: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.UNAVAILABLE)]
    watch = client.watch_policies()
    assert [(await anext(watch)).version, (await anext(watch)).version] == ["v1", "v2"]
    with pytest.raises(Unavailable, match="this server is stopping"):
        await anext(watch)
    script.failures = [Failure(Code.RESOURCE_EXHAUSTED, "too many watch", retry_after=0.1)]
    with pytest.raises(ResourceExhausted):
        await anext(client.watch_policies())


async def test_one_server_that_refuses_is_passed_over(script: Script) -> None:
    """However long it asks to be left alone: another one is there."""
    full = Script(failures=[Failure(Code.RESOURCE_EXHAUSTED, retry_after=50)] * 100)
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(serving(one)) for one in (full, script)]
        client = await stack.enter_async_context(AsyncClient(",".join(addresses), timeout=10))
        for _ in range(6):
            assert await client.chat("Hi", timeout=10).read() == "HI "
            await client.submit_feedback("r", thumb="up")
        assert len(script.chats) == len(script.feedback) == 6


async def test_one_server_that_is_away_is_passed_over(script: Script) -> None:
    async with serving(script) as address, AsyncClient(f"127.0.0.1:1,{address}") as client:
        for _ in range(6):
            assert await client.chat("Hi", timeout=10).read() == "HI "
        assert await client.healthy()


async def test_calls_are_dealt_out_evenly() -> None:
    scripts = [Script(), Script(), Script()]
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(serving(one)) for one in scripts]
        client = await stack.enter_async_context(AsyncClient(",".join(addresses)))
        async with asyncio.timeout(30):  # until there is a connection to each
            while not all(script.chats for script in scripts):
                await client.chat("Hi").read()
        before = [len(script.chats) for script in scripts]
        for _ in range(9):
            await client.chat("Hi").read()
        assert [len(script.chats) - count for script, count in zip(scripts, before, strict=True)] == [3, 3, 3]


async def test_a_name_stands_for_all_of_its_addresses() -> None:
    """gRPC's own round robin, which goes over what the name service says; here the list is in the target."""
    scripts = [Script(), Script()]
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(serving(one)) for one in scripts]
        client = await stack.enter_async_context(AsyncClient(f"ipv4:{','.join(addresses)}"))
        async with asyncio.timeout(30):
            while not all(script.chats for script in scripts):
                await client.chat("Hi").read()


async def test_each_server_is_asked_before_anybody_waits(servers: Servers) -> None:
    attempts = Attempts(servers, 4, 60.0)
    first = attempts.server()
    assert attempts.pause(AWAY) == 0
    servers.pick()  # somebody else's call: whose turn it is says nothing of whom this one has asked
    second = attempts.server()
    assert {first, second} == set(servers.all)
    pause = attempts.pause(AWAY)
    assert pause is not None
    assert pause > 0


async def test_who_is_away_is_passed_over_for_a_while(servers: Servers) -> None:
    one, other = servers.all
    one.unavailable()
    assert {servers.pick() for _ in range(4)} == {other}
    first_time = one.away_until
    one.unavailable()
    assert one.away_until > first_time + 0.5, "for longer each time"
    other.unavailable()
    assert {servers.pick() for _ in range(4)} == {one, other}, "unless all are"
    one.answered()
    assert {servers.pick() for _ in range(4)} == {one}


async def test_who_is_away_for_days_is_away(servers: Servers) -> None:
    away = servers.all[0]
    for _ in range(3000):
        away.unavailable()
    assert 9 < away.away_until - time.monotonic() <= 10


async def test_who_is_connected_comes_first(script: Script) -> None:
    async with serving(script) as address:
        async with Servers([grpc.aio.insecure_channel(target) for target in ("127.0.0.1:1", address)]) as servers:
            there = servers.all[1]
            await asyncio.wait_for(there.channel.channel_ready(), 10)
            assert {servers.pick() for _ in range(4)} == {there}


async def test_attempts_end(servers: Servers) -> None:
    attempts = Attempts(servers, 3, None)
    pauses = []
    for _ in range(4):
        attempts.server()
        pauses.append(attempts.pause(AWAY))
    assert [pause is None for pause in pauses] == [False, False, False, True]
    once = Attempts(servers, 0, None)
    once.server()
    assert once.pause(AWAY) is None


async def test_nobody_waits_longer_than_a_minute(servers: Servers) -> None:
    attempts = Attempts(servers, 3, None)
    for last in (False, True):
        attempts.server()
        assert (attempts.pause(ResourceExhausted("full", 61.0)) is None) is last


def test_pauses_double_and_are_not_in_step() -> None:
    for attempt in range(20):
        pauses = {back_off(attempt) for _ in range(20)}
        middle = min(5.0, 0.1 * 2**attempt)
        assert all(0.5 * middle <= pause <= 1.5 * middle for pause in pauses)
        assert len(pauses) > 1


def test_what_an_address_names() -> None:
    assert targets("a:1") == ["a:1"]
    assert targets("a:1, b:2,a:1") == ["a:1", "b:2"]
    assert targets("ipv4:1.2.3.4:1,1.2.3.5:1") == ["ipv4:1.2.3.4:1,1.2.3.5:1"]
    assert targets("dns:///plaudit.svc:50051") == ["dns:///plaudit.svc:50051"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"address": ""}, "address"),
        ({"address": "a:1,,b:2"}, "address"),
        ({"address": "a:1", "max_retries": -1}, "max_retries"),
        ({"address": "a:1", "keep_feedback": -1}, "keep_feedback"),
        ({"address": "a:1", "keep_feedback": 0, "feedback_file": "votes"}, "feedback_file"),
        ({"address": "a:1", "feedback_file": "/no/such/place/votes"}, "feedback_file"),
    ],
)
async def test_wrong_settings_are_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        AsyncClient(**arguments)
    assert wrong.value.field == field
