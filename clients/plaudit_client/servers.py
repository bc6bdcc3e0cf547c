"""Which of several servers gets the next call.

    "a:1,b:2"      one gRPC channel for each: their calls are dealt out here
    "dns:///name"  one channel: gRPC asks the name service for all addresses behind it, again whenever one is lost, and
                   deals out by itself (round_robin)

Calls go round. A server that could not be reached, or said that it is going down, is passed over for a while that grows
from 1 to 10 s, unless all are; so is one to which no connection stands, while to another one does. Connections are
made, kept and made again by gRPC.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import grpc

_AWAY = 1.0  # seconds, doubled each time in a row that the server could not be reached
_LONGEST_AWAY = 10.0


class Server:
    """One address."""

    def __init__(self, index: int, channel: grpc.aio.Channel) -> None:
        self.index = index
        self.channel = channel
        self.away_until = 0.0
        """By the monotonic clock."""
        self._failures = 0

    def answered(self) -> None:
        """It is there."""
        self.away_until, self._failures = 0.0, 0

    def unavailable(self) -> None:
        """It could not be reached, or is going down."""
        # The power of a day's failures would be no float.
        self.away_until = time.monotonic() + min(_LONGEST_AWAY, _AWAY * 2 ** min(self._failures, 16))
        self._failures += 1


class Servers(grpc.aio.Channel):
    """A channel to several servers, each of which can do the same; stubs are made on it as on any other."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self.all = tuple(Server(index, channel) for index, channel in enumerate(channels))
        self._turn = random.randrange(len(self.all))  # noqa: S311 - many clients must not all begin with the same one

    def pick(self, avoid: Mapping[Server, float] | None = None) -> Server:
        """Who gets the next call; `avoid`: until when (monotonic) this caller would rather not ask whom."""
        if len(self.all) == 1:
            return self.all[0]
        now = time.monotonic()
        self._turn += 1
        turns = self.all[self._turn % len(self.all) :] + self.all[: self._turn % len(self.all)]

        def reluctance(server: Server) -> tuple[bool, bool, bool]:
            # Asking for the state also begins to connect, so that the others are there when they are needed.
            state = server.channel.get_state(try_to_connect=True)
            refused = (avoid or {}).get(server, 0.0) > now
            return refused, server.away_until > now, state != grpc.ChannelConnectivity.READY

        return min(turns, key=reluctance)

    async def close(self, grace: float | None = None) -> None:
        """Close all connections; what runs is cancelled, after `grace` seconds."""
        for server in self.all:
            await server.channel.close(grace)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """A method with one request and one answer."""
        return Method(self, [server.channel.unary_unary(*arguments, **options) for server in self.all])

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """A method with one request and many answers."""
        return Method(self, [server.channel.unary_stream(*arguments, **options) for server in self.all])

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """A method with many requests and one answer."""
        return Method(self, [server.channel.stream_unary(*arguments, **options) for server in self.all])

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """A method with many requests and many answers."""
        return Method(self, [server.channel.stream_stream(*arguments, **options) for server in self.all])

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Of the next server in turn."""
        return self.pick().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Of the next server in turn."""
        await self.pick().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Of the next server in turn."""
        await self.pick().channel.channel_ready()

    async def __aenter__(self) -> Servers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Method:
    """One method, at every server."""

    def __init__(self, servers: Servers, at: Sequence[Callable[..., Any]]) -> None:
        self._servers = servers
        self._at = at

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call it at the next server."""
        return self._at[self._servers.pick().index](*arguments, **options)

    def at(self, server: Server) -> Callable[..., Any]:
        """The method at that server."""
        return self._at[server.index]


def at(method: Callable[..., Any], server: Server) -> Callable[..., Any]:
    """`method` of a stub made on `Servers`, at one of them."""
    return cast(Method, method).at(server)
