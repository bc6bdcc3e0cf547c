"""The program: how it starts, talks TLS, drains and stops."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
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


async def test_it_ends_with_its_parent() -> None:
    async with started("--server=127.0.0.1:1", "--exit-with-parent") as (process, _):
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_what_it_cannot_start_with_is_named(issue: Issue, tmp_path: Path) -> None:
    nobody = Addresses("127.0.0.1:1", "127.0.0.1:1")
    async with gateway(nobody) as url:
        with pytest.raises(OSError, match=r"cannot listen at 127\.0\.0\.1"):
            await gateway(nobody, listen=url.removeprefix("http://")).__aenter__()
    with pytest.raises(OSError, match="No such file"):
        await gateway(nobody, server_ca=tmp_path / "none.pem").__aenter__()
    one, other = issue("localhost", file="one"), issue("localhost", file="other")
    with pytest.raises(ValueError, match="must be a certificate chain and its unencrypted key"):
        await gateway(nobody, tls_certificate=one.chain, tls_key=other.key).__aenter__()
    (tmp_path / "empty.key").write_text("\n")
    with pytest.raises(ValueError, match="must hold an API key"):
        await gateway(nobody, observe_key_file=tmp_path / "empty.key").__aenter__()


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
