"""FeedbackService: what people say of replies, acknowledged once it is durable."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from plaudit import tracing
from plaudit.events import FEEDBACK, Record
from plaudit.v1 import feedback_pb2_grpc
from plaudit.v1.events_pb2 import Feedback
from plaudit.v1.feedback_pb2 import (
    Durability,
    RetractFeedbackRequest,
    RetractFeedbackResponse,
    StreamFeedbackRequest,
    SubmitFeedbackRequest,
    SubmitFeedbackResponse,
    Thumb,
)
from plaudit_server import caller, calls
from plaudit_server.allowance import Allowance
from plaudit_server.config import ServerSettings
from plaudit_server.feedback_stream import FeedbackStream
from plaudit_server.metrics import ServerMetrics
from plaudit_server.outbox import Outbox, durable
from plaudit_server.receipts import Receipts
from plaudit_server.refusal import Refusal, invalid
from plaudit_server.validation import check_identifier, check_text

_STREAM_SECONDS = 5.0  # until one of many streams may have ended: nobody knows
_OUTCOMES = {grpc.StatusCode.RESOURCE_EXHAUSTED: "limited", grpc.StatusCode.UNAVAILABLE: "unavailable"}
_VERDICTS = "thumb, rating, preference or comment"


class FeedbackService(feedback_pb2_grpc.FeedbackServiceServicer):
    """Checks, signs off, appends."""

    def __init__(
        self,
        receipts: Receipts,
        pseudonym: Callable[[str], str],
        outbox: Outbox,
        settings: ServerSettings,
        metrics: ServerMetrics,
    ) -> None:
        self._receipts = receipts
        self._pseudonym = pseudonym
        self._outbox = outbox
        self._aspects = settings.aspects
        self._rate = Allowance(settings.feedback_per_minute_per_caller)
        self._max_streams = settings.max_feedback_streams
        self._metrics = metrics
        self._streams: set[FeedbackStream] = set()
        self._stopping = False

    async def SubmitFeedback(
        self, request: SubmitFeedbackRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> SubmitFeedbackResponse:
        """See feedback.proto."""
        with self._refusals_counted():
            self._check_rate()
            writing = self._append(_noted(self._submitted(request)))
        return SubmitFeedbackResponse(durability=await writing)

    async def RetractFeedback(
        self, request: RetractFeedbackRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RetractFeedbackResponse:
        """See feedback.proto."""
        with self._refusals_counted():
            self._check_rate()
            writing = self._append(_noted(self._retracted(request)))
        return RetractFeedbackResponse(durability=await writing)

    async def StreamFeedback(  # type: ignore[override]  # a coroutine that writes: see chat.py
        self, request_iterator: AsyncIterator[StreamFeedbackRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See feedback.proto."""
        if self._stopping:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "this server is stopping; please try another", retry_after=1.0)
        if len(self._streams) >= self._max_streams:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{len(self._streams)} streams of feedback run here, the most that this server takes",
                retry_after=_STREAM_SECONDS,
            )
        stream = FeedbackStream(self._accept, context.write, self._wait)
        self._streams.add(stream)
        try:
            await context.send_initial_metadata(())  # the caller may begin
            await stream.run(request_iterator)
        finally:
            self._streams.discard(stream)
            calls.current.get().statements = stream.settled

    def stop(self) -> None:
        """End the streams, each where it is; single statements are taken until the server closes."""
        self._stopping = True
        for stream in self._streams:
            stream.stop()

    def _wait(self) -> float:
        """0: the caller may say one thing more, which is counted now; else the seconds until it may."""
        return self._rate.take(caller.current.get().name, 1)

    def _check_rate(self) -> None:
        wait = self._wait()
        if wait:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"this caller has made its {self._rate.per_minute:,} statements a minute; try again in {wait:.1f} s",
                retry_after=wait,
            )

    def _accept(self, request: StreamFeedbackRequest) -> asyncio.Task[Durability.ValueType]:
        """One statement of a stream, on its way. Raises Refusal; a field is named as in the statement itself."""
        kind = request.WhichOneof("statement")
        with self._refusals_counted():
            if kind is None:
                raise invalid("statement", "is missing; give submit or retract")
            record = self._submitted(request.submit) if kind == "submit" else self._retracted(request.retract)
            task = asyncio.create_task(self._append(record))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks once a stream broke
        return task

    def _submitted(self, request: SubmitFeedbackRequest) -> Feedback:
        record = self._begin(request)
        verdict = request.WhichOneof("verdict")
        if verdict == "thumb":
            if request.thumb not in (Thumb.THUMB_UP, Thumb.THUMB_DOWN):
                raise invalid("thumb", "must be THUMB_UP or THUMB_DOWN")
            record.thumb = request.thumb
        elif verdict == "rating":
            if not 1 <= request.rating <= 5:
                raise invalid("rating", f"is {request.rating}; it must be 1 (worst) to 5 (best)")
            record.rating = request.rating
        elif verdict == "preference":
            other = self._receipts.read(request.preference.over_receipt, "preference.over_receipt")
            if other.response_id == record.response_id:
                raise invalid("preference.over_receipt", "is of the same reply; a preference is between two")
            if other.user and record.user and other.user != record.user:
                raise invalid("preference.over_receipt", "is for another user's reply; compare two that one user got")
            record.preferred_over = other.response_id
        elif verdict == "comment":
            check_text("comment", request.comment, 4096)
            record.comment = request.comment
        else:
            raise invalid("verdict", f"is missing; give one of {_VERDICTS}")
        return record

    def _retracted(self, request: RetractFeedbackRequest) -> Feedback:
        record = self._begin(request)
        record.retraction = True
        return record

    def _begin(self, request: SubmitFeedbackRequest | RetractFeedbackRequest) -> Feedback:
        """What both kinds of statement have in common, checked."""
        receipt = self._receipts.read(request.receipt, "receipt")
        check_identifier("user_id", request.user_id, 256)
        check_identifier("idempotency_key", request.idempotency_key, 128)
        aspect = request.aspect or self._aspects[0]
        if aspect not in self._aspects:
            raise invalid("aspect", f"{aspect[:64]!r} is not voted on here; give one of {', '.join(self._aspects)}")
        user = self._pseudonym(request.user_id)
        if receipt.user and user and user != receipt.user:
            raise invalid("user_id", "is not the user whose reply this receipt is for")
        record = Feedback(
            schema_version=1,
            feedback_id=request.idempotency_key or uuid.uuid4().hex,
            response_id=receipt.response_id,
            policy_version=receipt.policy_version,
            aspect=aspect,
            user=user or receipt.user,
            traceparent=tracing.traceparent(),
        )
        record.submitted_at.GetCurrentTime()
        return record

    def _append(self, record: Feedback) -> Coroutine[Any, Any, Durability.ValueType]:
        """Hand it to the outbox, now; what is to be awaited acknowledges it."""
        return self._written(record, self._outbox.append(_record(record)), time.perf_counter())

    async def _written(
        self, record: Feedback, written: asyncio.Future[Durability.ValueType], since: float
    ) -> Durability.ValueType:
        metrics = self._metrics
        with self._refusals_counted():
            durability = await durable(written, "the vote")
        metrics.feedback_acknowledgement.observe(time.perf_counter() - since)
        in_log = durability == Durability.DURABILITY_EVENT_LOG
        metrics.feedback_statements.labels("event_log" if in_log else "outbox").inc()
        metrics.feedback.labels(metrics.version(record.policy_version), record.aspect, _label(record)).inc()
        return durability

    @contextmanager
    def _refusals_counted(self) -> Iterator[None]:
        try:
            yield
        except Refusal as refusal:
            self._metrics.feedback_statements.labels(_OUTCOMES.get(refusal.code, "invalid")).inc()
            raise


def _noted(record: Feedback) -> Feedback:
    """For the call's line in the log."""
    calls.current.get().reply(record.response_id, record.policy_version)
    return record


def _record(feedback: Feedback) -> Record:
    return Record(FEEDBACK, feedback.response_id, feedback.SerializeToString())


def _label(record: Feedback) -> str:
    if record.HasField("thumb"):
        return "up" if record.thumb == Thumb.THUMB_UP else "down"
    return "preference" if record.HasField("preferred_over") else str(record.WhichOneof("verdict"))
