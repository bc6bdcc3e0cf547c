"""A TCP proxy inside the test, for clients that vanish without a word, or are cut off."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Network:
    """What lies between a client and a server."""

    def __init__(self) -> None:
        self.address = ""
        self.connections = 0
        """Made until now."""
        self.sent = 0
        """Pieces that clients have sent until now."""
        self._passes = asyncio.Event()
        self._passes.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def swallow(self) -> None:
        """From now on nothing comes through, in either direction, and nobody is told."""
        self._passes.clear()

    def reset(self) -> None:
        """Cut every connection as the kernel does for a process that was killed: with RST."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client: bool) -> None:
        """Until either end is closed."""
        self._writers.add(writer)
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                self.sent += client
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def between(target: str) -> AsyncIterator[Network]:
    """A proxy before the server at `target`."""
    network = Network()
    host, _, port = target.rpartition(":")
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        network.connections += 1
        onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
        tasks.add(asyncio.create_task(network.copy(reader, onward_writer, client=True)))
        tasks.add(asyncio.create_task(network.copy(onward_reader, writer, client=False)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    network.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield network
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        network.reset()
