"""SIGTERM to the program itself: it drains and ends with 0; a second one ends it now; while it starts, it just ends."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psutil
import pytest

from bench.deployment import free_range, serves
from plaudit_client import AsyncClient, Unavailable
from tests.fixtures_server import Deployment
from tests.server.test_chat import interactions

pytestmark = pytest.mark.slow


@asynccontextmanager
async def program(deployment: Deployment, **settings: Any) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """plaudit-server as a process of its own, and where it will listen; killed if it is still there in the end."""
    address = f"127.0.0.1:{free_range(1)}"
    given = deployment.settings(listen=address, **settings).model_dump(exclude_unset=True)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "plaudit_server.app", *flags, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process, address
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def said(process: asyncio.subprocess.Process, words: str) -> None:
    """Wait until it has logged them."""
    assert process.stderr is not None
    async with asyncio.timeout(100):
        while words not in (line := (await process.stderr.readline()).decode()):
            assert line, f"it ended without having said {words!r}"


async def ended(process: asyncio.subprocess.Process, seconds: float = 60) -> int:
    """The exit status; what it still says is read, or it could not say it."""
    async with asyncio.timeout(seconds):
        await process.communicate()
    assert process.returncode is not None
    return process.returncode


async def test_it_drains_and_a_second_signal_ends_it_now(deployment: Deployment) -> None:
    deployment.publish_endless("v1")
    room = {"max_tokens": 1500, "max_context": 2048}
    async with (
        program(deployment, **room, drain_seconds=90) as (process, address),
        AsyncClient(address, max_retries=0) as client,
    ):
        await said(process, f"serving v1 at {address}")
        reply = client.chat("hello", max_tokens=1500)
        reading = aiter(reply)
        await anext(reading)
        process.send_signal(signal.SIGTERM)
        while await serves(client):
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="stopping"):
            await client.chat("hello").read()
        async for _ in reading:
            pass
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 1500
        assert await ended(process) == 0
    assert [len(reply.reply_token_ids) for reply in interactions(deployment)] == [1500], "flushed"

    async with program(deployment, **room, drain_seconds=90) as (process, address), AsyncClient(address) as client:
        await said(process, f"serving v1 at {address}")
        running = client.chat("hello", max_tokens=1500)
        reading = aiter(running)
        await anext(reading)
        process.send_signal(signal.SIGTERM)
        await said(process, "draining: 1 streams")
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 128 + signal.SIGTERM
        assert running.usage is None


@pytest.mark.vllm
async def test_a_signal_while_vllm_starts_ends_it_and_all_its_processes(deployment: Deployment) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed: see requirements/run.txt")
    async with program(deployment, engine="vllm", kv_cache_bytes=1 << 27) as (process, _):
        await said(process, "starting")
        family = psutil.Process(process.pid)
        async with asyncio.timeout(100):  # it is well on its way
            while len(family.children(recursive=True)) < 2:
                await asyncio.sleep(0.05)
        children = family.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
        await asyncio.to_thread(psutil.wait_procs, children, timeout=60)
        assert not [child for child in children if child.is_running()]
