"""What this server has to say to the event log, written down before it is acknowledged.

    append() ──▶ pending ──▶ event log                        (batched: one write for all that came meanwhile, and
                    │                                          the next one without waiting where the log can do so)
                    │ slow, away, or the spool is not empty
                    ▼
                  spool (SQLite, fsynced) ──drain, in order──▶ event log, when it is back
                                               │ refused for ever
                                               ▼
                                          dead letters

While anything is in the spool, everything new goes behind it, so that records of one key keep their order. Nobody waits
for a log that is away: what it has not taken within `_PATIENCE_SECONDS` is spooled and acknowledged from there, and is
perhaps in the log twice, as after a crash between draining and deleting. That changes nothing for its readers. The
outbox is bounded; past the bound `append` refuses before anything is accepted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar, TypeVarTuple

import grpc

from plaudit import tracing
from plaudit.events import TOPICS, Entry, EventLog, EventLogUnavailable, Record, RecordRefused, from_beginning
from plaudit.events.sqlite import SqliteLog
from plaudit.tracing import Span
from plaudit.v1.feedback_pb2 import Durability
from plaudit_server.metrics import ServerMetrics
from plaudit_server.refusal import Refusal
from plaudit_server.refused import Refused

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 0.5
_NO_ANSWER = f"no answer for {_PATIENCE_SECONDS:g} s"
_RETRY_SECONDS = 1.0
_LAST_SECONDS = 2.0
_WRITE_BATCH = 1000
_DRAIN_BATCH = 500

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class _Handed(NamedTuple):
    """A record that was handed in; made by `append`."""

    record: Record
    future: asyncio.Future[Durability.ValueType]
    traceparent: str
    """Of the call that handed it in."""


_Batch = list[_Handed]


async def durable(written: asyncio.Future[Durability.ValueType], what: str) -> Durability.ValueType:
    """Where a record is durable, once it is. Raises Refusal UNAVAILABLE if it could be written nowhere."""
    try:
        return await written
    except EventLogUnavailable as error:
        raise Refusal(
            grpc.StatusCode.UNAVAILABLE, f"{what} could not be written down; please try again", retry_after=5.0
        ) from error


class Outbox:
    """Between the server's requests and the event log, which it does not own. Raises EventLogUnavailable.

    One thread writes to the log and one to the spool, so that neither waits for the other, and each keeps its order.
    """

    def __init__(self, event_log: EventLog, spool: Path, *, limit: int, metrics: ServerMetrics) -> None:
        self._log = event_log
        self._spool = SqliteLog(spool)
        self._refused = Refused(event_log, spool.with_name("refused.sqlite"), metrics)
        self._limit = limit
        self._drained = from_beginning(self._spool, *TOPICS)
        self._spooled, self._oldest = self._remaining()
        self._spooling = 0
        """Batches on their way to the spool, not counted as spooled yet."""
        self._pending: _Batch = []
        self._held: dict[asyncio.Future[Durability.ValueType], float] = {}
        """What is not acknowledged yet, in its order, and when it was handed in."""
        self._following: set[asyncio.Task[None]] = set()
        self._wake, self._filled = asyncio.Event(), asyncio.Event()
        self._closing = self._ended = False
        self._log_thread = ThreadPoolExecutor(1, "outbox-log")
        self._spool_thread = ThreadPoolExecutor(1, "outbox-spool")
        metrics.outbox_limit.set(limit)
        metrics.outbox_depth.set_function(self.depth)
        metrics.outbox_age.set_function(self.age)

    def depth(self) -> int:
        """Records that are not in the event log yet."""
        return self._spooled + len(self._held)

    def age(self) -> float:
        """Seconds since the oldest of them was handed in, by the wall clock, over restarts too; 0 if there is none."""
        oldest = self._oldest
        if oldest is None:
            oldest = next(iter(list(self._held.values())), None)  # a copy: this is the metrics' thread
        return 0.0 if oldest is None else max(0.0, time.time() - oldest)

    def append(self, record: Record) -> asyncio.Future[Durability.ValueType]:
        """Enqueue; the future tells where the record is durable.

        Raises Refusal RESOURCE_EXHAUSTED if the outbox is full, UNAVAILABLE once it has ended. The future raises
        EventLogUnavailable if neither the event log nor the spool could be written.
        """
        if self._ended:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "this server is stopping; please try another", retry_after=1.0)
        if self.depth() >= self._limit:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the event log is away and this server already holds {self._limit} records for it",
                retry_after=5.0,
            )
        future: asyncio.Future[Durability.ValueType] = asyncio.get_running_loop().create_future()
        # Whoever has gone away meanwhile does not ask; what went wrong is logged where it does.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._held[future] = time.time()
        self._pending.append(_Handed(record, future, tracing.traceparent()))
        self._wake.set()
        return future

    async def run(self) -> None:
        """Write and drain until `close`; then write what is pending, and drain what the log still takes.

        What it does not take within `_LAST_SECONDS` stays in the spool for next time.
        """
        draining = asyncio.create_task(self._drain())
        tasks = [asyncio.create_task(self._write_pending()), draining]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            self._ended = True
            self._filled.set()
            await asyncio.wait({draining}, timeout=_LAST_SECONDS)
        finally:
            self._ended = True
            for task in (*tasks, *self._following):
                task.cancel()
            await asyncio.gather(*tasks, *self._following, return_exceptions=True)
            # None is held, unless something unforeseen was raised.
            self._settle(list(self._held), EventLogUnavailable("the outbox has failed"))
            # Not waited for: a write to a log that is away ends when whoever owns the log closes it.
            self._log_thread.shutdown(wait=False, cancel_futures=True)
            self._spool_thread.shutdown(wait=False, cancel_futures=True)
            self._refused.close()
            self._spool.close()

    def close(self) -> None:
        """Ask `run` to write what is pending and to return."""
        self._closing = True
        self._wake.set()

    async def _write_pending(self) -> None:
        while True:
            batch, self._pending = self._pending[:_WRITE_BATCH], self._pending[_WRITE_BATCH:]
            if batch:
                await self._write(batch)
            elif not self._closing:
                self._wake.clear()
                await self._wake.wait()
            elif self._following:
                await asyncio.wait(self._following)
            else:
                return

    async def _write(self, batch: _Batch) -> None:
        """Write one batch, or begin to: where the log takes the next one meanwhile, `_follow` sees to the answer."""
        span = _span(batch)
        if self._spooled or self._spooling:
            await self._spool_batch(batch, span)
            return
        deadline = time.monotonic() + _PATIENCE_SECONDS
        beginning = self._in(self._log_thread, self._log.begin, [handed.record for handed in batch])
        begun, _ = await asyncio.wait({beginning}, timeout=_PATIENCE_SECONDS)
        if not begun:
            beginning.add_done_callback(lambda late: late.cancelled() or late.exception())
            await self._spool_batch(batch, span, _NO_ANSWER)
            return
        following = asyncio.create_task(self._follow(batch, span, asyncio.wrap_future(beginning.result()), deadline))
        self._following.add(following)
        following.add_done_callback(self._following.discard)

    async def _follow(self, batch: _Batch, span: Span, appending: asyncio.Future[None], deadline: float) -> None:
        """Acknowledge a batch when the log has taken it; if it does not soon, spool it.

        It may take it later, but before anything that is drained, as both go through the log's one thread.
        """
        done, _ = await asyncio.wait({appending}, timeout=max(0.0, deadline - time.monotonic()))
        appending.add_done_callback(lambda late: late.cancelled() or late.exception())
        if not done:
            await self._spool_batch(batch, span, _NO_ANSWER)
        elif error := appending.exception():
            await self._spool_batch(batch, span, str(error))
        else:
            self._settle([handed.future for handed in batch], Durability.DURABILITY_EVENT_LOG)
            span.set({"plaudit.durability": "event log"})
            span.end()

    async def _spool_batch(self, batch: _Batch, span: Span, why: str = "others wait there") -> None:
        """Write a batch to the spool, and acknowledge it; tell its callers if that cannot be done either."""
        if not self._spooled and not self._spooling:  # said once: all that is new goes there, until it is empty
            log.warning("the event log does not take records, they go to the outbox: %s", why)
        futures = [handed.future for handed in batch]
        self._spooling += 1
        try:
            await self._in(self._spool_thread, self._spool.append, [handed.record for handed in batch])
        except EventLogUnavailable as error:
            log.error("%d records could not be written anywhere: %s", len(batch), error)
            self._settle(futures, error)
            span.fail("EventLogUnavailable")
        else:
            if self._oldest is None:
                self._oldest = self._held[futures[0]]
            self._spooled += len(batch)
            self._filled.set()
            self._settle(futures, Durability.DURABILITY_OUTBOX)
            span.set({"plaudit.durability": "outbox"})
        finally:
            self._spooling -= 1
            span.end()

    def _settle(
        self,
        futures: Sequence[asyncio.Future[Durability.ValueType]],
        outcome: Durability.ValueType | EventLogUnavailable,
    ) -> None:
        for future in futures:
            self._held.pop(future)
            if future.done():
                continue  # its caller has gone away
            if isinstance(outcome, EventLogUnavailable):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    async def _drain(self) -> None:
        """Move the spool into the event log, the oldest first, whenever the log takes it; at the end, while it does."""
        while self._spooled or not self._ended:
            try:
                if not self._spooled:
                    self._filled.clear()
                    await self._filled.wait()
                    continue
                await self._drain_batch()
            except EventLogUnavailable:
                if self._ended:
                    return
                await asyncio.sleep(_RETRY_SECONDS)  # still away; depth and age are metrics

    async def _drain_batch(self) -> None:
        entries = await self._in(self._spool_thread, self._waiting)
        records = [Record(entry.topic, entry.key, entry.value) for entry in entries]
        try:
            await self._in(self._log_thread, self._log.append, records)
        except RecordRefused:
            for record in records:  # those that were taken are there twice, which changes nothing
                await self._in(self._log_thread, self._refused.append, record)
        self._spooled, self._oldest = await self._in(self._spool_thread, self._forget, entries)
        if not self._spooled:
            log.info("the event log is back; the outbox is empty")

    def _waiting(self) -> Sequence[Entry]:
        return self._spool.read(self._drained, limit=_DRAIN_BATCH)

    def _forget(self, entries: Sequence[Entry]) -> tuple[int, float | None]:
        """Delete what was drained; returns what remains."""
        for entry in entries:
            self._drained[entry.topic, entry.partition] = entry.offset + 1
        try:
            for topic in {entry.topic for entry in entries}:
                self._spool.delete_before(topic, self._drained[topic, 0])
        except EventLogUnavailable as error:
            # A full disk. It is told by `_drained` until the next deletion; else it would be drained over and over.
            log.warning("drained records stay in the outbox's file, and are repeated after a restart: %s", error)
        return self._remaining()

    def _remaining(self) -> tuple[int, float | None]:
        """How many records are in the spool, and when the oldest came (unix time).

        Counted anew, not subtracted: the spool is what it is, whatever failed in between. Only in the spool's thread,
        or what is appended meanwhile would be counted twice, or not.
        """
        oldest = self._spool.read(self._drained, limit=1)
        return self._spool.lag(self._drained), oldest[0].appended_at if oldest else None

    def _in(
        self, thread: ThreadPoolExecutor, work: Callable[[*Arguments], T], *arguments: *Arguments
    ) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(thread, work, *arguments)


def _span(batch: _Batch) -> Span:
    """Of one batch on its way to the log: it belongs to the calls of all its records, and so below none of them."""
    if not any(handed.traceparent for handed in batch):
        return tracing.NONE
    return tracing.span(
        "append to the event log",
        kind="producer",
        links=[handed.traceparent for handed in batch[: tracing.MOST_LINKS]],
        attributes={"messaging.operation.type": "send", "messaging.batch.message_count": len(batch)},
    )
