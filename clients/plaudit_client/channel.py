"""The way to one server or several: TLS, the API key, retries, and what all calls have in common."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from copy import copy
from pathlib import Path
from typing import Self, TypeVar

import grpc

from plaudit_client.errors import Cancelled, InvalidRequest, PlauditError, ResourceExhausted, Unavailable, from_rpc
from plaudit_client.retry import Attempts
from plaudit_client.servers import Server, Servers, at
from plaudit_client.trace_context import current_span

OPTIONS = [
    # A server that was restarted is found again within seconds; gRPC would look only every two minutes in the end.
    ("grpc.max_reconnect_backoff_ms", 2000),
    # How long connecting may take before another server is asked; gRPC's 20 s is for slower networks.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # One that vanished without a word is noticed within 40 s of silence. Plaudit's servers permit it (docs/limits.md);
    # another may answer with GOAWAY, upon which gRPC asks less often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # the one that gRPC 1.85 goes by
    ("grpc.http2.max_pings_without_data", 0),
    # No pings to find out how wide the line is: chat needs little of it, and each wakes client and server for nothing.
    ("grpc.http2.bdp_probe", 0),
]
"""Of every channel."""

# All addresses behind a name get their share, and not only the first.
_SERVICE_CONFIG = '{"loadBalancingConfig": [{"round_robin": {}}]}'

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
        max_retries: int,
    ) -> None:
        """Raises InvalidRequest if `address` names no server, or `max_retries` is below 0."""
        if max_retries < 0:
            raise InvalidRequest("max_retries", f"is {max_retries}; it must be 0 (each call is made once) or more")
        self.address = address
        self._metadata = metadata
        self._timeout = timeout
        self._max_retries = max_retries
        self.grpc = Servers([_open(target, credentials) for target in targets(address)])

    def saying(self, metadata: list[tuple[str, str]]) -> Self:
        """The same connections for another caller."""
        other = copy(self)
        other._metadata = metadata
        return other

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What goes with a call that is made now: the key, and the caller's span if it is in one."""
        return self._metadata + current_span()

    async def close(self) -> None:
        """What runs is cancelled."""
        await self.grpc.close()

    def attempts(self, timeout: float | None) -> Attempts:
        """For a call that is about to be made, and may be made again; `timeout`: seconds for all of it."""
        return Attempts(self.grpc, self._max_retries, timeout)

    def failed(self, server: Server, error: grpc.aio.AioRpcError) -> PlauditError:
        """What to raise for a call that failed at `server`, which is passed over for a while if it is away."""
        failure = from_rpc(error, self.address)
        if isinstance(failure, Unavailable | Cancelled):
            server.unavailable()
        return failure

    async def call(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q) -> R:
        """One answer. Raises PlauditError."""
        return await self._once(method, request, self.grpc.pick(), self._timeout)

    async def insist(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q) -> R:
        """As `call`, made again as `retry.py` says: for what may be said twice."""
        attempts = self.attempts(self._timeout)
        while True:
            try:
                return await self._once(method, request, attempts.server(), attempts.remaining())
            except PlauditError as error:
                failure = error
            await again(attempts, failure)

    async def watch(self, method: grpc.aio.UnaryStreamMultiCallable[Q, R], request: Q) -> AsyncGenerator[R]:
        """Answers without end; until the first has come, asked for again as `insist` does. Raises PlauditError.

        Where too many watch already, that is said at once: they watch without end, too.
        """
        attempts, begun = self.attempts(self._timeout), False
        while True:
            server = attempts.server()
            call: grpc.aio.UnaryStreamCall[Q, R] = at(method, server)(request, metadata=self.metadata)
            try:
                async for answer in call:
                    server.answered()
                    begun = True
                    yield answer
                return
            except grpc.aio.AioRpcError as error:
                failure = self.failed(server, error)
            finally:
                call.cancel()
            if begun or isinstance(failure, ResourceExhausted):
                raise failure from None
            await again(attempts, failure)

    async def any(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q, wanted: R) -> bool:
        """Whether any server gives the answer that is wanted. Raises what the last one does, if none answers."""
        failure: PlauditError | None = None
        answers = []
        for server in self.grpc.all:
            try:
                answers.append(await self._once(method, request, server, self._timeout))
            except PlauditError as error:
                failure = error
        if failure is not None and not answers:
            raise failure
        return wanted in answers

    async def _once(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q, server: Server, seconds: float | None
    ) -> R:
        try:
            answer: R = await at(method, server)(request, timeout=seconds, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            raise self.failed(server, error) from None
        server.answered()
        return answer


async def again(attempts: Attempts, failure: PlauditError) -> None:
    """Wait until the call that failed so may be made again. Raises `failure` if it may not."""
    if (pause := attempts.pause(failure)) is None:
        raise failure from None
    await asyncio.sleep(pause)


def targets(address: str) -> list[str]:
    """The servers that an address names. Raises InvalidRequest if it names none."""
    # ipv4:1.2.3.4:1,1.2.3.5:1 is a list of gRPC's own.
    found = [address] if address.startswith(("ipv4:", "ipv6:")) else [part.strip() for part in address.split(",")]
    if not all(found):
        raise InvalidRequest("address", f"is {address!r}; it must be HOST:PORT, or several with a comma between them")
    return list(dict.fromkeys(found))


def _open(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    options = [*OPTIONS, ("grpc.service_config", _SERVICE_CONFIG)]
    if credentials:
        return grpc.aio.secure_channel(target, credentials, options)
    return grpc.aio.insecure_channel(target, options)
