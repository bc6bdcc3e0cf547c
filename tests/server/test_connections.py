"""Connections grow old and are replaced; each side asks whether the other is there, as the other permits."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from plaudit_client import AsyncClient, ResourceExhausted, Unavailable
from plaudit_client import channel as sdk
from plaudit_server import connections
from tests.fixtures_server import Deployment, until_serving
from tests.server.network import Network, between


async def until_replaced(client: AsyncClient, network: Network) -> None:
    """Make calls, none of which may fail, until the client has another connection."""
    before = network.connections
    async with asyncio.timeout(30):
        while network.connections == before:
            assert await client.healthy()
            await asyncio.sleep(0.02)


async def test_an_old_connection_is_replaced_and_no_call_notices(deployment: Deployment) -> None:
    deployment.publish_endless("v1")
    settings: dict[str, Any] = {"max_connection_age": 1.0, "max_tokens": 1500, "max_context": 2048}
    async with deployment.running(**settings) as (address, control), between(address) as network:
        async with AsyncClient(network.address, control=control) as client:
            await until_serving(client, "v1")
            reply = client.chat("hello", max_tokens=1500)
            reading = aiter(reply)
            await anext(reading)
            await until_replaced(client, network)
            assert reply.finish_reason is None
            async for _ in reading:  # over the old one, to its end
                pass
            assert reply.usage is not None
            assert reply.usage.completion_tokens == 1500
            await until_replaced(client, network)


async def test_what_still_runs_after_the_grace_is_cut(deployment: Deployment) -> None:
    async with deployment.client(max_connection_age=1.0, max_connection_age_grace=1.0) as client:
        with pytest.raises(Unavailable):
            async for _ in client.watch_policies():
                pass
        await anext(client.watch_policies())


@pytest.mark.parametrize("permitted", [True, False])
async def test_pings_that_are_not_permitted_break_the_connection(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, permitted: bool
) -> None:
    """A hundred times as fast as in earnest."""
    fast = [(name, value // 100 if name == "grpc.keepalive_time_ms" else value) for name, value in sdk.OPTIONS]
    monkeypatch.setattr(sdk, "OPTIONS", fast)
    if permitted:
        monkeypatch.setattr(connections, "LEAST_PING_SECONDS", connections.LEAST_PING_SECONDS / 100)
    async with (
        deployment.running() as (address, control),
        between(control) as network,
        AsyncClient(address, control=network.address) as client,
    ):
        watch = client.watch_policies()
        await anext(watch)  # v0, and then nothing for a long time
        silence = asyncio.ensure_future(anext(watch))
        before = network.sent
        async with asyncio.timeout(60):
            while network.sent < before + 5 and not silence.done():
                await asyncio.sleep(0.05)
        if permitted:
            assert not silence.done()
            silence.cancel()
        else:
            with pytest.raises(Unavailable, match=r"(?i)too.many.pings"):
                await silence
        await asyncio.gather(silence, return_exceptions=True)


def test_the_sdk_asks_no_more_often_than_servers_permit() -> None:
    options = dict(sdk.OPTIONS)
    assert options["grpc.keepalive_time_ms"] >= 2 * 1000 * connections.LEAST_PING_SECONDS
    assert options["grpc.keepalive_timeout_ms"] < options["grpc.keepalive_time_ms"]


async def test_past_all_calls_that_a_server_takes_it_refuses_and_still_answers_probes(deployment: Deployment) -> None:
    async with deployment.running(max_calls=2) as (_, control), AsyncClient(control, max_retries=0) as client:
        watches: list[Any] = [client.watch_policies() for _ in range(2)]
        for watch in watches:
            await anext(watch)
        with pytest.raises(ResourceExhausted, match="2 calls are open, the most that this server takes") as refused:
            await client.list_policies()
        assert refused.value.retry_after
        assert await client.healthy()
        await watches[0].aclose()
        async with asyncio.timeout(20):
            while True:  # the place is free once the server has seen the end
                with suppress(ResourceExhausted):
                    await client.list_policies()
                    break
                await asyncio.sleep(0.02)
