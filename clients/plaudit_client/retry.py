"""Whether, where and after which pause a call is made again. No I/O here: whoever makes the call also waits.

Made again is what the server could not take now and may be said twice: `Unavailable`, `Cancelled` (what runs when a
server stops may end so), and `ResourceExhausted` if it is known when to come back: the server says so (RetryInfo), or
gRPC has all the calls it takes. If another server has not refused yet, it is asked at once; else the pause doubles from
0.1 s, with jitter, and is never shorter than what the server asked for. A call is never made again past its deadline:
if the pause would end after it, the failure is raised at once, and the caller keeps the time.
"""

from __future__ import annotations

import random
import time

from plaudit_client.errors import Cancelled, PlauditError, ResourceExhausted, Unavailable
from plaudit_client.servers import Server, Servers

MAX_RETRIES = 4
"""By default. 1.5 s of pauses: longer than a server's hand-over."""
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for more is not waited for, whatever the deadline: the caller may know better."""
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


class Attempts:
    """The attempts of one call, all within `timeout` seconds from now (None: without a deadline)."""

    def __init__(self, servers: Servers, max_retries: int, timeout: float | None) -> None:
        self._servers = servers
        self._max_retries = max_retries
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._made = 0
        self._refused: dict[Server, float] = {}
        self._server: Server | None = None

    def server(self) -> Server:
        """Where to make the next attempt."""
        self._server = self._servers.pick(self._refused)
        return self._server

    def remaining(self) -> float | None:
        """Seconds until the deadline; None if there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def pause(self, failure: PlauditError) -> float | None:
        """Seconds to wait before the attempt that follows `failure`; None: there is none, raise it."""
        self._made += 1
        if isinstance(failure, Unavailable):
            asked = failure.retry_after or 0.0
        elif isinstance(failure, Cancelled):
            asked = 0.0
        elif isinstance(failure, ResourceExhausted) and failure.retry_after is not None:
            asked = failure.retry_after
        else:
            return None
        if self._made > self._max_retries:
            return None
        now = time.monotonic()
        if self._server is not None:
            wait = max(back_off(self._made - 1), asked * random.uniform(1.0, 1.1))  # noqa: S311
            self._refused[self._server] = now + wait
        # A server that has not refused can be asked now.
        pause = max(0.0, min(self._refused.get(server, 0.0) for server in self._servers.all) - now)
        remaining = self.remaining()
        if pause > LONGEST_WAIT or (remaining is not None and pause >= remaining):
            return None
        return pause


def back_off(attempt: int, first: float = _FIRST_PAUSE, longest: float = _LONGEST_PAUSE) -> float:
    """Seconds after the attempt of that number, the first being 0."""
    # Jitter: many clients that lost the same server must not come back in step.
    return min(longest, first * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.5)  # noqa: S311
