"""Many statements over one connection, which may break: what is not settled yet is sent again over the next one.

statements ──pull──▶ waiting ──send──▶ unsettled ──answers──▶ settled
                                          └── connection lost: sent again, first ──┘
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import suppress
from typing import Literal, TypeAlias
from uuid import uuid4

import grpc

from plaudit.v1.feedback_pb2 import RetractFeedbackRequest, StreamFeedbackRequest, StreamFeedbackResponse
from plaudit_client.channel import Channel, again
from plaudit_client.errors import RequestTooLarge
from plaudit_client.requests import feedback_request
from plaudit_client.servers import at
from plaudit_client.types import RefusedStatement, Settled

_AHEAD = 1000  # statements kept here until they are settled
_OPENING = 5.0
"""Seconds after which a stream is taken for open though nothing says so: a proxy may hold that back."""

Method: TypeAlias = "grpc.aio.StreamStreamMultiCallable[StreamFeedbackRequest, StreamFeedbackResponse]"
Call: TypeAlias = "grpc.aio.StreamStreamCall[StreamFeedbackRequest, StreamFeedbackResponse]"


class Statement:
    """One statement about one reply, or its retraction; the arguments are those of `AsyncClient.submit_feedback`.

    Raises InvalidRequest unless exactly one thing is said.
    """

    def __init__(
        self,
        receipt: str,
        *,
        thumb: Literal["up", "down"] | None = None,
        rating: int | None = None,
        preferred_over: str | None = None,
        comment: str | None = None,
        retraction: bool = False,
        aspect: str = "",
        user_id: str = "",
        idempotency_key: str | None = None,
    ) -> None:
        # A retraction is checked as a comment would be: it says nothing else, and its texts are Unicode.
        submit = feedback_request(
            receipt,
            thumb=thumb,
            rating=rating,
            preferred_over=preferred_over,
            comment="retraction" if retraction else comment,
            aspect=aspect,
            user_id=user_id,
            idempotency_key=idempotency_key or uuid4().hex,
        )
        self.idempotency_key = submit.idempotency_key
        """Its own, if none was given."""
        if retraction:
            retract = RetractFeedbackRequest(
                receipt=receipt, aspect=aspect, user_id=user_id, idempotency_key=submit.idempotency_key
            )
            self.request = StreamFeedbackRequest(retract=retract)
        else:
            self.request = StreamFeedbackRequest(submit=submit)


async def stream(
    channel: Channel, method: Method, statements: Iterable[Statement] | AsyncIterable[Statement]
) -> AsyncGenerator[Settled]:
    """See AsyncClient.stream_feedback."""
    waiting: asyncio.Queue[StreamFeedbackRequest | None] = asyncio.Queue()
    unsettled: deque[StreamFeedbackRequest] = deque()
    room = asyncio.Semaphore(_AHEAD)
    settled, attempts = Settled(), channel.attempts(None)
    # Apart from sending, which is cancelled with its connection: that must not reach into the caller's generator.
    pulling = asyncio.create_task(_pull(statements, room, waiting))
    try:
        while True:
            server, before = attempts.server(), settled
            call: Call = at(method, server)(metadata=channel.metadata)
            sending = asyncio.create_task(_send(call, waiting, unsettled))
            try:
                async for answer in call:
                    server.answered()
                    attempts = channel.attempts(None)
                    for _ in range(before.count + answer.settled - settled.count):
                        unsettled.popleft()
                        room.release()
                    settled = _add(before, answer)
                    yield settled
                await sending
                await pulling
                return
            except grpc.aio.AioRpcError as error:
                failure = channel.failed(server, error)
            finally:
                call.cancel()
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)  # it fails with its connection
            if isinstance(failure, RequestTooLarge) and unsettled:
                failure = _naming(failure, settled.count, unsettled)
            await again(attempts, failure)
    finally:
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)


async def _pull(
    statements: Iterable[Statement] | AsyncIterable[Statement],
    room: asyncio.Semaphore,
    waiting: asyncio.Queue[StreamFeedbackRequest | None],
) -> None:
    """Queue all statements as room is made for them, and None behind the last."""
    try:
        if isinstance(statements, AsyncIterable):
            async for statement in statements:
                await room.acquire()
                waiting.put_nowait(statement.request)
        else:
            for statement in statements:
                await room.acquire()
                waiting.put_nowait(statement.request)
    finally:
        waiting.put_nowait(None)


async def _send(
    call: Call, waiting: asyncio.Queue[StreamFeedbackRequest | None], unsettled: deque[StreamFeedbackRequest]
) -> None:
    """Send what is unsettled again, then what waits, until there is no more."""
    # A refusal that came while something was being sent would be lost: see _CUT_OFF in errors.py.
    with suppress(TimeoutError):
        await asyncio.wait_for(call.initial_metadata(), _OPENING)
    for request in list(unsettled):
        await call.write(request)
    while (following := await waiting.get()) is not None:
        unsettled.append(following)
        await call.write(following)
    waiting.put_nowait(None)  # the next connection, too, is to find the end
    await call.done_writing()


def _naming(failure: RequestTooLarge, settled: int, unsettled: Iterable[StreamFeedbackRequest]) -> RequestTooLarge:
    """gRPC says the size only, and the stream would end there again, however often the caller began anew."""
    size, index = max((statement.ByteSize(), -index) for index, statement in enumerate(unsettled))
    return RequestTooLarge(f"statement {settled - index} (the first is 0) has {size:,} bytes: {failure.message}")


def _add(before: Settled, answer: StreamFeedbackResponse) -> Settled:
    """The answer counts what was sent over its connection."""
    return Settled(
        before.count + answer.settled,
        before.in_event_log + answer.in_event_log,
        before.in_outbox + answer.in_outbox,
        before.refused + answer.refused,
        tuple(
            RefusedStatement(before.count + refusal.index, refusal.field, refusal.reason) for refusal in answer.refusals
        ),
    )
