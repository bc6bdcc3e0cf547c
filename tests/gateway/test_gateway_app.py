"""The program: how it starts, talks TLS, drains and stops."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from plaudit.v1 import chat_pb2
from plaudit_gateway import app
from plaudit_server.rpc import Addresses
from tests.clients.scripted import Context, Script, serving
from tests.fixtures_tls import Issue
from tests.gateway.conftest import gateway

CHAT: dict[str, Any] = {"model": "plaudit", "messages": [{"role": "user", "content": "one two three"}], "stream": True}


class Held(Script):
    """Says one word, and the rest when it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def StreamChat(
        self, request: chat_pb2.StreamChatRequest, context: Context
    ) -> AsyncIterator[chat_pb2.StreamChatResponse]:
        async for event in super().StreamChat(request, context):
            yield event
            if event.HasField("delta"):
                await self.go_on.wait()


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The real program on a free port, and its URL; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "plaudit_gateway.app",
        "--listen=127.0.0.1:0",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while " at http" not in (line := (await process.stderr.readline()).decode()):
                assert line, "it ended"
        yield process, line.rpartition(" ")[2].strip()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_sigterm_lets_replies_end() -> None:
    script = Held()
    async with serving(script) as address, started(f"--server={address}") as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            async with http.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
                lines = answer.aiter_lines()
                while "ONE" not in await anext(lines):
                    pass
                process.send_signal(signal.SIGTERM)
                await _until_closed(url)
                script.go_on.set()
                rest = [line async for line in lines]
        assert "data: [DONE]" in rest
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def _until_closed(url: str) -> None:
    """Wait until it no longer takes connections. Raises TimeoutError."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with suppress(ConnectionRefusedError):
        async with asyncio.timeout(30):
            while True:
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                with suppress(OSError):  # it may be cut while it closes
                    await writer.wait_closed()
                await asyncio.sleep(0.01)


NOBODY = Addresses("127.0.0.1:1", "127.0.0.1:1")
HALF = b"GET /v1/page HTTP/1.1\r\nHost: 127"


async def _said(url: str, words: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of a stranger's, who says so much and then nothing."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(words)
    return reader, writer


async def _end(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], patience: float = 30) -> bytes:
    """What came before it was closed from the other side. Raises TimeoutError."""
    reader, writer = connection
    try:
        with suppress(ConnectionResetError):
            return await asyncio.wait_for(reader.read(), patience)
        return b""
    finally:
        writer.close()


async def test_silent_connections_shut_nobody_out() -> None:
    async with gateway(NOBODY, max_connections=3, head_seconds=600) as url:
        silent = [await _said(url, HALF if number % 2 else b"") for number in range(8)]
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            assert (await http.get("/v1/page")).status_code == 200
            assert (await http.get("/healthz")).headers["x-request-id"], "an answer, though of no server"
            assert [await _end(each) for each in silent[:6]] == [b""] * 6, "who waited longest made room"
            for each in silent[6:]:
                with pytest.raises(TimeoutError):
                    await _end(each, 0.05)


async def test_a_head_that_does_not_come_is_not_waited_for() -> None:
    async with gateway(NOBODY, head_seconds=0.3) as url:
        for words in (b"", HALF):
            assert await _end(await _said(url, words)) == b""
        whole = b"GET /v1/page HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        for words in (whole, whole + HALF):
            assert (await _end(await _said(url, words))).startswith(b"HTTP/1.1 200 "), "and none for the next one"
        reader, writer = await _said(url, HALF)
        ended = asyncio.create_task(_end((reader, writer)))
        while not ended.done():  # uvicorn's own time would begin anew with each byte
            writer.write(b"x")
            await asyncio.wait([ended], timeout=0.05)
        assert await ended == b""


async def test_who_is_being_answered_makes_no_room() -> None:
    script = Held()
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(script))
        limits = {"max_connections": 2, "head_seconds": 0.2}
        url = await stack.enter_async_context(gateway(Addresses(address, address), **limits))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30))
        replies = []
        for _ in range(2):
            answer = await stack.enter_async_context(http.stream("POST", "/v1/chat/completions", json=CHAT))
            replies.append(answer.aiter_lines())
            while "ONE" not in await anext(replies[-1]):
                pass
            # At first when the time that a head may take is over; then at once, since there is no room.
            assert await _end(await _said(url, b"")) == b""
        script.go_on.set()
        for lines in replies:
            assert "data: [DONE]" in [line async for line in lines]


async def test_it_ends_with_its_parent() -> None:
    async with started("--server=127.0.0.1:1", "--exit-with-parent") as (process, _):
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_what_it_cannot_start_with_is_named(issue: Issue, tmp_path: Path) -> None:
    async with gateway(NOBODY) as url:
        with pytest.raises(OSError, match=r"cannot listen at 127\.0\.0\.1"):
            await gateway(NOBODY, listen=url.removeprefix("http://")).__aenter__()
    with pytest.raises(OSError, match="No such file"):
        await gateway(NOBODY, server_ca=tmp_path / "none.pem").__aenter__()
    one, other = issue("localhost", file="one"), issue("localhost", file="other")
    with pytest.raises(ValueError, match="must be a certificate chain and its unencrypted key"):
        await gateway(NOBODY, tls_certificate=one.chain, tls_key=other.key).__aenter__()
    (tmp_path / "empty.key").write_text("\n")
    with pytest.raises(ValueError, match="must hold an API key"):
        await gateway(NOBODY, observe_key_file=tmp_path / "empty.key").__aenter__()


async def test_tls_and_a_renewed_certificate(issue: Issue) -> None:
    first = issue("localhost", "127.0.0.1")
    trusted = ssl.create_default_context(cafile=str(first.ca))
    async with serving(Script()) as address:
        where = Addresses(address, address)
        async with gateway(where, tls_certificate=first.chain, tls_key=first.key) as url:
            assert url.startswith("https://")
            assert await _serial(url, trusted) == await _serial(url, trusted)
            before = await _serial(url, trusted)
            issue("localhost", "127.0.0.1")
            async with asyncio.timeout(30):
                while await _serial(url, trusted) == before:
                    await asyncio.sleep(0.05)
            first.key.write_text("no key")  # what could be read last stands
            async with httpx.AsyncClient(verify=trusted) as http:
                assert (await http.get(f"{url}/healthz")).status_code == 200


def test_pieces_do_not_wait_for_each_other() -> None:
    """Nagle's algorithm holds the second back until the first is acknowledged."""
    with app._listen("127.0.0.1:0") as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def _serial(url: str, trusted: ssl.SSLContext) -> str:
    host, _, port = url.removeprefix("https://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=trusted)
    certificate: dict[str, Any] = writer.get_extra_info("peercert")
    writer.close()
    await writer.wait_closed()
    return str(certificate["serialNumber"])
