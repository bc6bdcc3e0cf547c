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


class Places:
    """Counts calls by whose they are."""

    def __init__(self, most: int, full: str, *, come_back: float = 1.0) -> None:
        """Who finds `most` open is told so (`full`), and to come back after so many seconds."""
        self._most = most
        self._full = full
        self._come_back = come_back
        self._open: Counter[str] = Counter()

    @contextmanager
    def one_more(self, whose: str = "") -> Iterator[None]:
        """Count a call meanwhile. Raises Refusal RESOURCE_EXHAUSTED if there are as many as may be."""
        if self._open[whose] >= self._most:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, self._full, retry_after=self._come_back)
        self._open[whose] += 1
        try:
            yield
        finally:
            self._open[whose] -= 1
            if not self._open[whose]:
                del self._open[whose]
