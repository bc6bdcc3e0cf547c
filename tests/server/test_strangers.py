"""Whoever shows no key may hold calls open, and send or read nothing: it costs others nothing."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_status import rpc_status

from plaudit import callers
from plaudit.callers import ApiKey, Callers
from plaudit.permission import Permission
from plaudit_client import AsyncClient
from plaudit_server import interceptors
from plaudit_server.places import OPEN_TO_ANYBODY
from tests.fixtures_server import Deployment
from tests.server.stranger import Stranger, stranger

CHAT, VOTE = "/plaudit.v1.ChatService/StreamChat", "/plaudit.v1.FeedbackService/SubmitFeedback"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
MORE = 4


async def test_calls_without_a_key_take_no_place_from_others(deployment: Deployment, tmp_path: Path) -> None:
    secret = callers.new_secret()
    key = ApiKey(name="shop", sha256=callers.digest(secret), permissions=frozenset({Permission.CHAT}))
    callers.write(tmp_path / "callers.json", Callers(keys=(key,)))
    settings: dict[str, Any] = {"callers_file": tmp_path / "callers.json", "max_calls": 1}
    async with deployment.server(**settings) as address, AsyncExitStack() as there:

        async def another(window: int = 65_535) -> Stranger:
            return await there.enter_async_context(stranger(address, window=window))

        who = await another()
        for path in (CHAT, VOTE):  # nothing is waited for: what it would say is not asked
            await who.until_ended(who.call(path, 50, message=False), 50)
        for path, message in ((CHECK, False), (WATCH, False), (REFLECTION, False), (CHECK, True), (WATCH, True)):
            who = await another(window=0)
            calls = who.call(path, OPEN_TO_ANYBODY + MORE, message=message)
            await who.until_ended(calls, MORE)
            if message:  # an answer is on its way, and is not let through
                await who.until_begun(calls)
            assert len(calls & who.ended) == MORE
        async with AsyncClient(address, api_key=secret, max_retries=0) as client:
            assert await client.chat("hello", max_tokens=2).read()
            assert await client.healthy()
        async with grpc.aio.insecure_channel(address) as channel:
            watch: Any = HealthStub(channel).Watch(HealthCheckRequest())
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            watch.cancel()


async def test_past_its_connections_places_a_stranger_is_told_when_to_come_back(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        health = HealthStub(channel)
        watches: list[Any] = [health.Watch(HealthCheckRequest()) for _ in range(OPEN_TO_ANYBODY)]
        for watch in watches:
            await watch.read()
        with pytest.raises(grpc.aio.AioRpcError, match=f"{OPEN_TO_ANYBODY} calls of this connection") as refused:
            await health.Check(HealthCheckRequest())
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert rpc_status.from_call(refused.value).details[0].Unpack(RetryInfo())
        watches[0].cancel()
        async with asyncio.timeout(20):
            while True:  # the place is free once the server has seen the end
                with suppress(grpc.aio.AioRpcError):
                    await health.Check(HealthCheckRequest())
                    break
                await asyncio.sleep(0.02)


async def test_a_request_is_not_waited_for_without_end(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ended(path: str, *, done: bool) -> tuple[grpc.StatusCode, str]:
        call: Any = channel.stream_stream(path)(timeout=60)
        if done:
            await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
        return error.value.code(), str(error.value.details())

    async with grpc.aio.insecure_channel(address) as channel:
        for path in (CHAT, VOTE, CHECK, WATCH):
            code, words = await ended(path, done=True)
            assert (code, "ended without a request" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        monkeypatch.setattr(interceptors, "_REQUEST_SECONDS", 0.05)
        for path in (CHAT, VOTE, CHECK, WATCH):
            code, words = await ended(path, done=False)
            assert (code, "no request came" in words) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)


async def test_a_stranger_who_reads_nothing_keeps_no_server_from_draining(deployment: Deployment) -> None:
    async with AsyncExitStack() as there, asyncio.timeout(60):
        async with deployment.server() as address:
            who = await there.enter_async_context(stranger(address, window=0))
            await who.until_begun(who.call(WATCH, 3, message=True) | who.call(CHECK, 3, message=True))
            channel = await there.enter_async_context(grpc.aio.insecure_channel(address))
            watch: Any = HealthStub(channel).Watch(HealthCheckRequest())
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            told = asyncio.create_task(watch.read())
        assert (await told).status == HealthCheckResponse.NOT_SERVING, "who reads is told"
