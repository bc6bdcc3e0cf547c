"""Connections, which strangers may open: bounded in number, and in the time for which they may say nothing.

uvicorn leaves a connection open that sends nothing, or half a head, and past its own limit it answers everybody with
503.

connection ──▶ one too many? ── yes ──▶ who has waited longest makes room; if nobody waits, it is closed itself
                   │ no
                   ▼
               waits for a request's head ── not there in time ──▶ closed
                   ▲ answered        │ there
                   └──── request ◀───┘
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded(most: int, seconds: float, closed: Callable[[], None]) -> type[H11Protocol]:
    """For uvicorn's `http`: at most so many connections, each of which has `seconds` from its beginning, and from the
    end of each answer, to send the head of a request. `closed` is called for each that is closed for this."""
    waiting: dict[Connection, asyncio.TimerHandle] = {}  # who has waited longest is the first

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if len(self.connections) >= most:
                closed()
                if not waiting:
                    self.transport = transport
                    transport.abort()
                    return
                next(iter(waiting)).make_room()
            super().connection_made(transport)
            self._look()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            self._waits_no_more()
            super().connection_lost(exc)

        def make_room(self) -> None:
            self._waits_no_more()
            self.connections.discard(self)
            self.transport.abort()

        def _look(self) -> None:
            # uvicorn's own time between two requests is shorter, but begins anew with every byte.
            waits = self.cycle is None or self.cycle.response_complete
            if not waits:
                self._waits_no_more()
            elif self not in waiting:
                waiting[self] = self.loop.call_later(seconds, self._too_late)

        def _waits_no_more(self) -> None:
            if timer := waiting.pop(self, None):
                timer.cancel()

        def _too_late(self) -> None:
            if not self.transport.is_closing():
                closed()
            self.transport.close()  # what is left of an answer may still go out
            waiting[self] = self.loop.call_later(seconds, self.transport.abort)

    return Connection
