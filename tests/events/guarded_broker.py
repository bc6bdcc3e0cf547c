"""A proxy in front of the embedded broker that has what that lacks: TLS, client certificates, and SASL/PLAIN.

The SASL part is the broker's side of KIP-43 and KIP-152: the two requests are answered here and never reach the broker,
and whatever else comes before the right password ends the connection.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
import threading
from contextlib import suppress

from plaudit.broker import EmbeddedBroker, free_port

_API_VERSIONS, _SASL_HANDSHAKE, _SASL_AUTHENTICATE = 18, 17, 36
_SASL_AUTHENTICATION_FAILED = 58
_FLEXIBLE = 2  # of SaslAuthenticate: from this version on with compact strings and tagged fields


class GuardedBroker:
    """`with GuardedBroker(context, {"name": "password"}) as broker: … broker.address …`; no users: no SASL."""

    def __init__(self, context: ssl.SSLContext, users: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.logins: list[str] = []
        """Who was let in, in order."""
        self.refused = 0
        """Handshakes and passwords that were wrong."""
        self._context = context
        self.users = users
        self._inner = EmbeddedBroker(advertised_port=self.port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="guarded-broker")
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> GuardedBroker:
        self._inner.start()
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._inner.stop()

    async def _listen(self) -> None:
        # A plain socket and TLS by `start_tls`, so that handshakes that fail are seen, and counted.
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        onward = None
        try:
            await writer.start_tls(self._context)
            there, onward = await asyncio.open_connection("127.0.0.1", int(self._inner.address.rpartition(":")[2]))
            if self.users is None or await self._authenticated(reader, writer, there, onward):
                await asyncio.gather(_copy(reader, onward), _copy(there, writer))
        except ssl.SSLError:
            self.refused += 1
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, onward):
                if end is not None:
                    end.transport.abort()

    async def _authenticated(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        onward: asyncio.StreamWriter,
    ) -> bool:
        while True:
            request = await _frame(reader)
            api, version, correlation = struct.unpack_from(">hhi", request)
            if api == _API_VERSIONS:
                onward.write(struct.pack(">i", len(request)) + request)
                answer = await _frame(there)
            elif api == _SASL_HANDSHAKE:
                mechanism = b"PLAIN"
                answer = struct.pack(">ihih", correlation, 0, 1, len(mechanism)) + mechanism
            elif api == _SASL_AUTHENTICATE:
                known, name = self._known(request, version)
                answer = _login_answer(correlation, version, known)
                writer.write(struct.pack(">i", len(answer)) + answer)
                if known:
                    self.logins.append(name)
                else:
                    self.refused += 1
                    await writer.drain()
                return known
            else:
                return False
            writer.write(struct.pack(">i", len(answer)) + answer)

    def _known(self, request: bytes, version: int) -> tuple[bool, str]:
        """Whether the name and password in a SaslAuthenticateRequest are right, and the name."""
        request = request[:-1] if version >= _FLEXIBLE else request  # the tagged fields, of which there are none
        _, name, password = request.rsplit(b"\0", 2)
        return (self.users or {}).get(name.decode()) == password.decode(), name.decode()


def _login_answer(correlation: int, version: int, known: bool) -> bytes:
    """SaslAuthenticateResponse: an error code, no message, no bytes, and from version 1 on no end of the session."""
    error = 0 if known else _SASL_AUTHENTICATION_FAILED
    if version < _FLEXIBLE:
        return struct.pack(">ihhi", correlation, error, -1, 0) + (b"\0" * 8 if version else b"")
    return struct.pack(">ibhBB", correlation, 0, error, 0, 1) + b"\0" * 8 + b"\0"


async def _frame(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
