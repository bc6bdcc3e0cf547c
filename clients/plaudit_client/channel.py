"""One connection to one address: TLS, the API key, and what all calls over it have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import grpc

from plaudit_client.errors import InvalidRequest, Unavailable, from_rpc
from plaudit_client.retry import ATTEMPTS, pause
from plaudit_client.trace_context import current_span

_OPTIONS = [
    # A server that was restarted is found again within seconds; gRPC would look only every two minutes in the end.
    ("grpc.max_reconnect_backoff_ms", 2000),
    # One that vanished without a word is noticed within 40 s of silence. Plaudit's servers permit it (docs/limits.md);
    # another may answer with GOAWAY, upon which gRPC asks less often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # the one that gRPC 1.85 goes by
    ("grpc.http2.max_pings_without_data", 0),
]

Q = TypeVar("Q")
R = TypeVar("R")


def tls(
    ca: str | Path | None = None, certificate: str | Path | None = None, key: str | Path | None = None
) -> grpc.ChannelCredentials:
    """For `AsyncClient(credentials=…)`: talk TLS, from PEM files.

    `ca` signs the server's certificate; None: one of the CAs that gRPC trusts. `certificate` (a chain) and `key` are
    the client's own, for servers that ask for one.
    Raises OSError if a file cannot be read, InvalidRequest if only one of the two is given.
    """
    if (certificate is None) != (key is None):
        raise InvalidRequest("certificate", "a client certificate and its key belong together; give both, or neither")
    ours = [None if path is None else Path(path).read_bytes() for path in (ca, key, certificate)]
    return grpc.ssl_channel_credentials(*ours)


def metadata(api_key: str | None) -> list[tuple[str, str]]:
    """What goes with every call; None: the key in PLAUDIT_API_KEY, if there is one. Raises InvalidRequest."""
    key = os.environ.get("PLAUDIT_API_KEY", "") if api_key is None else api_key
    if not key:
        return []
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequest("api_key", "holds characters that no key has; give it as `plaudit keys create` showed it")
    return [("authorization", f"Bearer {key}")]


class Channel:
    """Makes calls; their failures become PlauditError."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        metadata: list[tuple[str, str]],
        timeout: float,
    ) -> None:
        self.address = address
        self._metadata = metadata
        self._timeout = timeout
        self.grpc = (
            grpc.aio.secure_channel(address, credentials, _OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(address, _OPTIONS)
        )

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What goes with a call that is made now: the key, and the caller's span if it is in one."""
        return self._metadata + current_span()

    async def close(self) -> None:
        """What runs is cancelled."""
        await self.grpc.close()

    async def call(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q) -> R:
        """One answer. Raises PlauditError."""
        try:
            return await method(request, timeout=self._timeout, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self.address) from None

    async def insist(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q) -> R:
        """As `call`, made again a few times while the server is unavailable: for what may be said twice."""
        for attempt in range(ATTEMPTS - 1):
            try:
                return await self.call(method, request)
            except Unavailable:
                await pause(attempt)
        return await self.call(method, request)
