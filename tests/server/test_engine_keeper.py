"""The engine dies: the server says so, brings it back with what it had, and gives up only after some attempts."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from plaudit.v1 import chat_pb2_grpc
from plaudit.v1.chat_pb2 import Message, Role, StreamChatRequest
from plaudit_client import Unavailable
from plaudit_server import app, engine_keeper
from plaudit_server.config import ServerSettings
from plaudit_server.engine import Engine, EngineError, PolicyVersion
from plaudit_server.torch_engine import TorchEngine
from tests.fixtures_server import Deployment, until_serving
from tests.server.stranger import stranger

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16}


class Mortal(TorchEngine):
    """The torch engine, with faults to order."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.starts = 0
        self.failing_starts = 0
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.deadly: set[str] = set()
        """Versions whose loading the engine does not survive."""
        self.loads: list[str] = []
        self._dying = False

    def die(self) -> None:
        self._dying = True
        self._work.set()

    async def start(self) -> None:
        self.starts += 1
        await self.may_start.wait()
        if self.starts > 1 and self.failing_starts:
            self.failing_starts -= 1
            raise EngineError("no memory left")
        self._dying = False
        await super().start()

    async def load(self, version: PolicyVersion) -> None:
        self.loads.append(version.name)
        if version.name in self.deadly:
            self.die()
            while self.healthy:
                await asyncio.sleep(0.01)
            raise EngineError(f"loading {version.name}: the engine failed")
        await super().load(version)

    def _step(self, arrival: Any) -> Any:
        if self._dying:
            raise RuntimeError("injected")
        return super()._step(arrival)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The engines of the servers that are started, mortal unless vLLM is asked for."""
    made: list[Any] = []
    ordinary = app.make_engine

    def make(settings: ServerSettings, model: Path) -> Engine:
        engine = (
            Mortal(model, max_context=settings.max_context, max_running=settings.max_running)
            if settings.engine == "torch"
            else ordinary(settings, model)
        )
        made.append(engine)
        return engine

    monkeypatch.setattr(app, "make_engine", make)
    monkeypatch.setattr(engine_keeper, "_FIRST_PAUSE", 0.01)
    return made


async def health(address: str) -> dict[str, str]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        names = {"": "", "chat": "plaudit.v1.ChatService", "feedback": "plaudit.v1.FeedbackService"}
        checks = {
            short: (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status
            for short, name in names.items()
        }
    return {short: health_pb2.HealthCheckResponse.ServingStatus.Name(status) for short, status in checks.items()}


UP = {"": "SERVING", "chat": "SERVING", "feedback": "SERVING"}
DOWN = {"": "NOT_SERVING", "chat": "NOT_SERVING", "feedback": "SERVING"}


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def until_health(address: str, expected: dict[str, str], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while await health(address) != expected:
            await asyncio.sleep(0.02)


def stream(channel: grpc.aio.Channel) -> Any:
    """A chat, as the wire has it."""
    request = StreamChatRequest(messages=[Message(role=Role.ROLE_USER, content="hello")])
    request.sampling.max_tokens = 250
    return aiter(chat_pb2_grpc.ChatServiceStub(channel).StreamChat(request))


async def refusal(reading: Any) -> tuple[str, float]:
    """(code, seconds to wait) with which a chat ends."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in reading:
            pass
    retry = RetryInfo()
    assert rpc_status.from_call(refused.value).details[0].Unpack(retry)
    return refused.value.code().name, retry.retry_delay.ToNanoseconds() / 1e9


async def test_the_collector_passes_over_what_stays_while_a_server_runs(deployment: Deployment) -> None:
    """Or all streams stand still while it looks through what vLLM and torch have imported."""
    async with deployment.server():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0  # the engine, which is part of cycles, can be collected


async def test_a_dead_engine_comes_back_with_what_it_had(deployment: Deployment, engines: list[Any]) -> None:
    deployment.publish("v1", seed=1)
    deployment.publish_endless("v2", parent="v1")
    async with deployment.client() as client:
        await until_serving(client, "v2")
        await until(lambda: engines[0].loads == ["v2", "v1"])
        before = {v: await client.chat("hi", policy_version=v, **GREEDY).read() for v in ("v0", "v1", "v2")}
        engines[0].may_start.clear()
        async with grpc.aio.insecure_channel(client.address) as channel:
            running = stream(channel)
            started = (await anext(running)).started
            assert (await anext(running)).HasField("delta")
            engines[0].die()
            assert await refusal(running) == ("UNAVAILABLE", 5.0)
            await until_health(client.address, DOWN)
            assert await refusal(stream(channel)) == ("UNAVAILABLE", 5.0)
        await client.submit_feedback(started.receipt, thumb="down")
        assert (await client.list_policies()).serving_version == "v2"
        deployment.publish("v3", seed=3, parent="v2")  # waits, and is not refused
        engines[0].may_start.set()
        await until_health(client.address, UP)
        await until_serving(client, "v3")
        after = {v: await client.chat("hi", policy_version=v, **GREEDY).read() for v in ("v0", "v2")}
        assert after == {v: before[v] for v in ("v0", "v2")}
        assert (await client.list_policies()).failures == {}
        assert sorted(engines[0].loads) == ["v1", "v1", "v2", "v2", "v3"]


async def test_it_gives_up_after_too_many_attempts_in_a_row(deployment: Deployment, engines: list[Any]) -> None:
    async def serve() -> None:
        async with deployment.server(engine_restarts=2) as address:
            engines[0].failing_starts = 99
            engines[0].die()
            await until(lambda: engines[0].starts == 3)
            with pytest.raises(grpc.aio.AioRpcError):  # it is gone
                await until_health(address, UP, seconds=20)

    with pytest.raises(EngineError, match="2 attempts in a row to restart it failed"):
        await serve()


async def test_one_failed_attempt_is_not_the_end(deployment: Deployment, engines: list[Any]) -> None:
    async with deployment.client(engine_restarts=2) as client:
        engines[0].failing_starts = 1
        engines[0].die()
        await until(lambda: engines[0].starts == 3)
        await until_health(client.address, UP)
        assert await client.chat("hi", **GREEDY).read()


async def test_a_stranger_who_reads_nothing_keeps_no_engine_from_coming_back(
    deployment: Deployment, engines: list[Any]
) -> None:
    async with deployment.client() as client, stranger(client.address, window=0) as who:
        await who.until_begun(who.call("/grpc.health.v1.Health/Watch", 1, message=True))
        engines[0].die()
        await until(lambda: engines[0].starts == 2)
        await until_health(client.address, UP)
        assert await client.chat("hi", **GREEDY).read()


async def test_a_version_that_kills_the_engine_is_not_tried_for_ever(
    deployment: Deployment, engines: list[Any]
) -> None:
    deployment.publish("v1", seed=1)
    async with deployment.client() as client:
        engines[0].deadly.add("v2")
        deployment.publish("v2", seed=2, parent="v1")
        async with asyncio.timeout(60):
            while "died of it 2 times" not in (await client.list_policies()).failures.get("v2", ""):
                await asyncio.sleep(0.05)
        await until_health(client.address, UP)
        assert engines[0].loads.count("v2") == 2
        reply = client.chat("hi", **GREEDY)
        await reply.read()
        assert reply.policy_version == "v1"


async def test_a_server_that_stops_while_its_engine_restarts_leaves_nothing_behind(
    deployment: Deployment, engines: list[Any]
) -> None:
    async with deployment.server() as address:
        engines[0].may_start.clear()
        engines[0].die()
        await until_health(address, DOWN)
        await until(lambda: engines[0].starts == 2)
        asyncio.get_running_loop().call_later(0.5, engines[0].may_start.set)
    assert not engines[0].healthy
    assert engines[0]._loop is None, "stopped after it had started"


async def test_a_server_that_is_stopped_while_its_engine_starts_leaves_nothing_behind(
    deployment: Deployment, engines: list[Any]
) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(app.run(deployment.settings(), stop))
    await until(lambda: engines and engines[0].starts == 1)
    stop.set()
    await running
    assert not engines[0].healthy
    assert engines[0]._loop is None


@pytest.fixture
def collected() -> Iterator[None]:
    """What the log that pytest keeps holds of an engine that died is gone before the test is."""
    yield
    gc.collect()


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.usefixtures("collected")
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning")  # vLLM leaves its own open when it stops
async def test_vllms_engine_core_killed_under_a_running_stream(
    deployment: Deployment, engines: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed: see requirements/run.txt")
    deployment.publish_endless("v1")
    options: dict[str, Any] = {"engine": "vllm", "dtype": "float32", "max_running": 4, "max_versions": 2}
    async with deployment.client(kv_cache_bytes=1 << 27, **options) as client:
        await until_serving(client, "v1")
        before = {v: await client.chat("hi", policy_version=v, **GREEDY).read() for v in ("v0", "v1")}
        reply = client.chat("hello", max_tokens=250)
        reading = aiter(reply)
        await anext(reading)
        [process] = engines[0]._engine.engine_core.resources.engine_manager.processes  # EngineCore's own
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            async for _ in reading:
                pass
        await until_health(client.address, DOWN)
        await client.submit_feedback(reply.receipt, thumb="down")
        await until_health(client.address, UP, seconds=240)
        after = {v: await client.chat("hi", policy_version=v, **GREEDY).read() for v in ("v0", "v1")}
        assert after == before
        assert (await client.list_policies()).serving_version == "v1"
    caplog.clear()
