"""How many calls may be open at once: of callers whom the server knows in all, of anybody on each connection.

gRPC's own limit (maximum_concurrent_rpcs) counts before anybody is known, so strangers could use it up. It also counts
a call until the last byte is sent, and a client whose HTTP/2 window is closed keeps it from being sent for as long as
the connection lives. So what asks for no key has places of its own, on each connection: a stranger's run out, and
nobody else's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from plaudit_server.refusal import Refusal

OPEN_TO_ANYBODY = 8
"""Calls of health and reflection on one connection. Times --max-connections, it bounds the memory that they take."""

_COME_BACK_SECONDS = 1.0


class Places:
    """Counts calls by whose they are."""

    def __init__(self, most: int, words: str) -> None:
        """`words`: of what there are `most`, for who is refused."""
        self._most = most
        self._words = words
        self._open: Counter[str] = Counter()

    @contextmanager
    def one_more(self, whose: str = "") -> Iterator[None]:
        """Count a call meanwhile. Raises Refusal RESOURCE_EXHAUSTED if there are as many as may be."""
        if self._open[whose] >= self._most:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._most:,} {self._words} are open, the most that this server takes",
                retry_after=_COME_BACK_SECONDS,
            )
        self._open[whose] += 1
        try:
            yield
        finally:
            self._open[whose] -= 1
            if not self._open[whose]:
                del self._open[whose]
