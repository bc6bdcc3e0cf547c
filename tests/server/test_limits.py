"""What callers may not do to a running server, over real sockets: stay too long, vanish, not read, ask for too much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import psutil
import pytest

from plaudit.v1.chat_pb2 import Message, Role, StreamChatRequest
from plaudit.v1.chat_pb2_grpc import ChatServiceStub
from plaudit.v1.sampling_pb2 import FinishReason, SamplingParameters
from plaudit_client import AsyncClient, DeadlineExceeded, ResourceExhausted, Statement
from plaudit_server import chat
from tests.fixtures_server import Deployment, until_serving
from tests.server.network import between
from tests.server.test_chat import interactions

LENGTH = 1500  # seconds of sampling: nothing here waits for the end
ROOM = {"max_tokens": LENGTH, "max_context": 2048}


@asynccontextmanager
async def busy(deployment: Deployment, **settings: Any) -> AsyncIterator[tuple[str, AsyncClient]]:
    """A server whose replies end at max_tokens only, with one place that can be had."""
    deployment.publish_endless("v1")
    options = {"max_running": 1, "max_waiting": 0, **ROOM, **settings}
    async with (
        deployment.running(**options) as (address, control),
        AsyncClient(address, control=control, max_retries=0, keep_feedback=0) as client,
    ):
        await until_serving(client, "v1")
        yield address, client


def call(channel: grpc.aio.Channel, timeout: float | None = None, **fields: Any) -> Any:
    """A long reply, as the wire has it."""
    asked = StreamChatRequest(
        messages=[Message(role=Role.ROLE_USER, content="hello")],
        sampling=SamplingParameters(max_tokens=LENGTH),
        **fields,
    )
    return ChatServiceStub(channel).StreamChat(asked, timeout=timeout)


async def first_delta(reading: Any) -> None:
    while not (await reading.read()).HasField("delta"):
        pass


async def to_the_end(reading: Any) -> None:
    while await reading.read() is not grpc.aio.EOF:
        pass


async def until_free(client: AsyncClient, seconds: float = 30.0) -> None:
    """Wait until a request gets the only place."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                await client.chat("hi", max_tokens=1, unrecorded=True).read()
            except ResourceExhausted:
                await asyncio.sleep(0.02)
            else:
                return


async def a_receipt(client: AsyncClient) -> str:
    reply = client.chat("hi", max_tokens=1)
    await reply.read()
    return reply.receipt


def cut_off(deployment: Deployment) -> None:
    """The one reply that is recorded was given up on the way."""
    (reply,) = interactions(deployment)
    assert reply.finish_reason == FinishReason.FINISH_REASON_CANCELLED
    assert 0 < len(reply.reply_token_ids) < LENGTH


@pytest.mark.parametrize("vanishes", [False, True])
async def test_a_deadline_ends_the_reply_by_the_servers_own_clock(deployment: Deployment, vanishes: bool) -> None:
    """Also when the client's cancellation never comes."""
    async with busy(deployment) as (address, client):
        async with between(address) as network, grpc.aio.insecure_channel(network.address) as channel:
            reading = call(channel, timeout=1.0)
            await first_delta(reading)
            if vanishes:
                network.swallow()
            with pytest.raises(grpc.aio.AioRpcError, match="Deadline"):
                await to_the_end(reading)
            await until_free(client)
    cut_off(deployment)


async def test_a_deadline_passes_while_a_request_waits(deployment: Deployment) -> None:
    async with busy(deployment, max_waiting=3) as (address, client), grpc.aio.insecure_channel(address) as channel:
        running = call(channel, unrecorded=True)
        await first_delta(running)
        ahead = [call(channel, unrecorded=True) for _ in range(2)]
        for reading in ahead:
            await reading.read()  # it has started, which is to say that the engine has it
        for _ in range(2):  # the second would find no room if the first had not left
            with pytest.raises(DeadlineExceeded):
                await client.chat("hello", timeout=0.2).read()
        for reading in (running, *ahead):
            reading.cancel()
        await until_free(client)
    assert interactions(deployment) == []


async def test_a_killed_client_frees_its_place(deployment: Deployment) -> None:
    async with busy(deployment) as (address, client):
        async with between(address) as network, grpc.aio.insecure_channel(network.address) as channel:
            await first_delta(call(channel))
            network.reset()
            await until_free(client)
    cut_off(deployment)


async def test_a_client_that_vanished_without_a_word_is_noticed(deployment: Deployment) -> None:
    async with busy(deployment, keepalive=1) as (address, client):
        async with between(address) as network, grpc.aio.insecure_channel(network.address) as channel:
            await first_delta(call(channel))
            network.swallow()
            await until_free(client)
    cut_off(deployment)


async def test_a_client_that_does_not_read_is_waited_for_and_then_cut_off(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chat, "_STALL_SECONDS", 1.0)
    narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with busy(deployment) as (address, client):
        async with grpc.aio.insecure_channel(address, options=narrow) as channel:
            reading = call(channel, logprobs=True)
            await first_delta(reading)
            await until_free(client)
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await to_the_end(reading)
    assert "Error" not in caplog.text
    cut_off(deployment)


async def test_nothing_is_left_of_many_that_misbehave(deployment: Deployment) -> None:
    async with busy(deployment, max_running=4, max_waiting=100) as (address, client):

        async def misbehave() -> None:
            async with between(address) as network, grpc.aio.insecure_channel(network.address) as channel:
                readings = [call(channel, unrecorded=True) for _ in range(6)]
                await first_delta(readings[0])
                network.reset()

        async def settled() -> int:
            async with asyncio.timeout(30):
                await client.chat("hi", max_tokens=1, unrecorded=True).read()
                while "StreamChat" in str([task.get_coro() for task in asyncio.all_tasks()]):
                    await asyncio.sleep(0.02)
            return int(psutil.Process().num_fds())

        await misbehave()
        before = await settled()
        for _ in range(4):
            await misbehave()
        assert await settled() <= before + 3, "gRPC closes some of its own a little later"


async def test_watches_and_streams_of_feedback_are_few(deployment: Deployment) -> None:
    async with deployment.client(max_watchers=1, max_feedback_streams=1) as client:
        receipt = await a_receipt(client)
        watch = client.watch_policies()
        await anext(watch)
        with pytest.raises(ResourceExhausted, match="1 watch already") as refused:
            await anext(client.watch_policies())
        assert refused.value.retry_after
        more = asyncio.Event()

        async def slowly() -> AsyncIterator[Statement]:
            yield Statement(receipt, thumb="up")
            await more.wait()

        stream = client.stream_feedback(slowly())
        await anext(stream)
        with pytest.raises(ResourceExhausted, match="1 streams of feedback run here"):
            await anext(client.stream_feedback([Statement(receipt, thumb="up")]))
        more.set()
        async for _ in stream:
            pass
        async with asyncio.timeout(20):
            while True:  # the place is free once the server has seen the end
                with suppress(ResourceExhausted):
                    await anext(client.stream_feedback([Statement(receipt, thumb="up")]))
                    break
                await asyncio.sleep(0.02)


async def test_feedback_beyond_the_rate_is_refused_alone_and_slows_a_stream(deployment: Deployment) -> None:
    async with deployment.client(feedback_per_minute_per_caller=60) as client:
        receipt = await a_receipt(client)
        answers = client.stream_feedback([Statement(receipt, thumb="up", user_id=f"u{n}") for n in range(61)])
        assert [answer.count async for answer in answers][-1] == 61
        with pytest.raises(ResourceExhausted, match="its 60 statements a minute") as refused:
            await client.submit_feedback(receipt, thumb="up")
        assert refused.value.retry_after is not None
        assert 0 < refused.value.retry_after <= 1
        await asyncio.sleep(refused.value.retry_after)  # the true time
        await client.submit_feedback(receipt, thumb="up")


async def test_a_users_tokens_of_the_minute_run_out(deployment: Deployment) -> None:
    async with deployment.client(tokens_per_minute_per_user=200) as client:
        spent = 0

        async def spend() -> None:
            nonlocal spent
            while True:
                reply = client.chat("hi", max_tokens=100, user_id="ann")
                await reply.read()
                assert reply.usage is not None
                spent += reply.usage.prompt_tokens + reply.usage.completion_tokens

        with pytest.raises(ResourceExhausted, match="this user has used up its 200 tokens a minute") as refused:
            await spend()
        assert 50 < spent < 300, "charged as used, not as reserved"
        assert refused.value.retry_after
        await client.chat("hi", max_tokens=100, user_id="bob").read()
