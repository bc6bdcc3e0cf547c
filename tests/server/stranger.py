"""A client without a key that does not keep to what decent ones do; HTTP/2 by hand, since gRPC's own is decent."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from bench.hostile import PREFACE, frame

_HEADERS, _SETTINGS, _PING = 1, 4, 6
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_NO_FIELDS = bytes(5)  # a message of gRPC: not compressed, of 0 bytes


class Stranger:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next = 1
        self._news = asyncio.Event()
        self.begun: set[int] = set()
        """Calls to which the server has said something, by their stream."""
        self.ended: set[int] = set()
        """Those of them that it has ended."""

    def call(self, path: str, times: int, *, message: bool) -> set[int]:
        """Open so many calls, and send a message without fields, or none at all; returns their streams."""
        pairs = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
        pairs |= {"content-type": "application/grpc", "te": "trailers"}
        head = b"".join(b"\0" + _counted(name) + _counted(value) for name, value in pairs.items())
        opened = set(range(self._next, self._next + 2 * times, 2))
        self._next += 2 * times
        for stream in sorted(opened):
            self._writer.write(frame(_HEADERS, _END_HEADERS, stream, head))
            if message:
                self._writer.write(frame(0, _END_STREAM, stream, _NO_FIELDS))
        return opened

    async def until_begun(self, calls: set[int]) -> None:
        """Wait until the server has said something to each."""
        await self._until(lambda: calls <= self.begun)

    async def until_ended(self, calls: set[int], count: int) -> None:
        """Wait until the server has ended so many of them."""
        await self._until(lambda: len(calls & self.ended) >= count)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def listen(self) -> None:
        """Answer what a connection lives by, until it is closed."""
        while True:
            head = await self._reader.readexactly(9)
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
            payload = await self._reader.readexactly(int.from_bytes(head[:3]))
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._writer.write(frame(kind, _ACK, 0, payload if kind == _PING else b""))
            elif kind == _HEADERS:
                self.begun.add(stream)
                if flags & _END_STREAM:
                    self.ended.add(stream)
                self._news.set()


def _counted(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


@asynccontextmanager
async def stranger(address: str, *, window: int = 65_535) -> AsyncIterator[Stranger]:
    """One connection. `window`: bytes that the server may send on a call before the client says that it has read."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE + frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, window)))
    who = Stranger(reader, writer)
    listening = asyncio.create_task(who.listen())
    try:
        yield who
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
