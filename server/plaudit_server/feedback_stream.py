"""Many statements over one stream: read ahead, settled in their order, answered as they are.

requests ──read──▶ checked ──▶ outbox
                      │          │ futures, at most IN_FLIGHT of them
                      ▼          ▼
                   refusals ──▶ settled in order ──▶ answers       (one for all that settled meanwhile)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import grpc

from plaudit.v1.feedback_pb2 import Durability, RefusedFeedback, StreamFeedbackRequest, StreamFeedbackResponse
from plaudit_server.refusal import Refusal

IN_FLIGHT = 1000
"""Statements that are read and not settled; the next is read when one of them is."""

_TOLD = 100
_FOR_GOOD = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)

Settling: TypeAlias = "asyncio.Task[Durability.ValueType] | Refusal"


class FeedbackStream:
    """One stream. `accept` begins with a statement, and raises Refusal for one that is wrong; `wait` says how many
    seconds are to pass before it may, and 0 once.
    """

    def __init__(
        self,
        accept: Callable[[StreamFeedbackRequest], asyncio.Task[Durability.ValueType]],
        write: Callable[[StreamFeedbackResponse], Awaitable[None]],
        wait: Callable[[], float],
    ) -> None:
        self._accept = accept
        self._write = write
        self._wait = wait
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._begun: asyncio.Queue[Settling | None] = asyncio.Queue()
        self._answer = StreamFeedbackResponse()
        self._answered = 0
        self._reading: asyncio.Task[None] | None = None

    async def run(self, requests: AsyncIterator[StreamFeedbackRequest]) -> None:
        """Until the caller has sent all, or `stop`; all that was read is settled and answered then.

        Raises Refusal RESOURCE_EXHAUSTED or UNAVAILABLE where the caller is to go on later.
        """
        self._reading = asyncio.create_task(self._read(requests))
        try:
            while (settling := await self._next()) is not None:
                await self._settle(settling)
                self._room.release()
            await asyncio.wait({self._reading})
            if self._reading.cancelled():
                raise Refusal(
                    grpc.StatusCode.UNAVAILABLE, "this server is stopping; please try another", retry_after=1.0
                )
            self._reading.result()
        except Refusal:
            await self._tell()
            raise
        finally:
            self._reading.cancel()
        await self._tell()

    @property
    def settled(self) -> int:
        """Statements that were taken or refused so far."""
        return self._answer.settled

    def stop(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self, requests: AsyncIterator[StreamFeedbackRequest]) -> None:
        try:
            async for request in requests:
                await self._room.acquire()
                while seconds := self._wait():  # noqa: ASYNC110 - other streams of this caller may be faster
                    await asyncio.sleep(seconds)
                try:
                    self._begun.put_nowait(self._accept(request))
                except Refusal as refusal:
                    self._begun.put_nowait(refusal)
                    if refusal.code not in _FOR_GOOD:
                        return
        finally:
            self._begun.put_nowait(None)

    async def _next(self) -> Settling | None:
        """The next one, in order; before waiting for it, say what has been settled."""
        if self._begun.empty():
            await self._tell()
        settling = await self._begun.get()
        if isinstance(settling, asyncio.Task) and not settling.done():
            await self._tell()
        return settling

    async def _settle(self, settling: Settling) -> None:
        """Count it. Raises Refusal if it, and what is behind it, must be sent again."""
        if isinstance(settling, Refusal):
            if settling.code not in _FOR_GOOD:
                raise settling
            self._answer.refused += 1
            if self._answer.refused <= _TOLD:
                self._answer.refusals.append(
                    RefusedFeedback(index=self._answer.settled, field=settling.field or "", reason=settling.message)
                )
        elif await settling == Durability.DURABILITY_EVENT_LOG:
            self._answer.in_event_log += 1
        else:
            self._answer.in_outbox += 1
        self._answer.settled += 1

    async def _tell(self) -> None:
        if self._answer.settled > self._answered:
            await self._write(self._answer)
            self._answered = self._answer.settled
            self._answer.ClearField("refusals")
