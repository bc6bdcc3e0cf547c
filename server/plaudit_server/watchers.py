"""How many may watch at once: each watcher is a stream that lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from plaudit_server.refusal import Refusal

_COME_BACK_SECONDS = 30.0


class Watchers:
    """Those of one service."""

    def __init__(self, most: int, *, instead: str) -> None:
        """`instead`: the rpc that shows the same once."""
        self._most = most
        self._instead = instead
        self._now = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count a watcher meanwhile. Raises Refusal RESOURCE_EXHAUSTED if there are as many as may be."""
        if self._now >= self._most:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._now} watch already, the most that this server takes; look with {self._instead} instead",
                retry_after=_COME_BACK_SECONDS,
            )
        self._now += 1
        try:
            yield
        finally:
            self._now -= 1


def stopping() -> Refusal:
    """What ends a watch when the server does."""
    return Refusal(grpc.StatusCode.UNAVAILABLE, "this server is stopping; please watch another", retry_after=1.0)
