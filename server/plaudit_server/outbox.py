"""What this server has to say to the event log, written down before it is acknowledged.

    append() ──▶ pending ──▶ event log                        (batched: one write for all that came meanwhile)
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
from typing import TypeVar, TypeVarTuple

import grpc

from plaudit.events import TOPICS, Entry, EventLog, EventLogUnavailable, Record, RecordRefused, from_beginning
from plaudit.events.sqlite import SqliteLog
from plaudit.v1.feedback_pb2 import Durability
from plaudit_server.metrics import ServerMetrics
from plaudit_server.refusal import Refusal
from plaudit_server.refused import Refused

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_WRITE_BATCH = 1000
_DRAIN_BATCH = 500

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
_Pending = list[tuple[Record, "asyncio.Future[Durability.ValueType]", float]]


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
        self._writing: _Pending = []
        self._pending: _Pending = []
        self._wake, self._filled = asyncio.Event(), asyncio.Event()
        self._closing = self._ended = False
        self._log_thread = ThreadPoolExecutor(1, "outbox-log")
        self._spool_thread = ThreadPoolExecutor(1, "outbox-spool")
        metrics.outbox_depth.set_function(self.depth)
        metrics.outbox_age.set_function(self.age)

    def depth(self) -> int:
        """Records that are not in the event log yet."""
        return self._spooled + len(self._writing) + len(self._pending)

    def age(self) -> float:
        """Seconds since the oldest of them was handed in, by the wall clock, over restarts too; 0 if there is none."""
        waiting = self._writing or self._pending  # replaced and never shortened: the metrics' thread may look
        oldest = self._oldest if self._oldest is not None else waiting[0][2] if waiting else None
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
        self._pending.append((record, future, time.time()))
        self._wake.set()
        return future

    async def run(self) -> None:
        """Write and drain until `close`; then write what is pending and return. The spool stays for next time."""
        tasks = [asyncio.create_task(self._write_pending()), asyncio.create_task(self._drain())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._ended = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _, future, _ in [*self._writing, *self._pending]:  # none, unless something unforeseen was raised
                if not future.done():
                    future.set_exception(EventLogUnavailable("the outbox has failed"))
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
        while self._pending or not self._closing:
            await self._wake.wait()
            self._writing, self._pending = self._pending[:_WRITE_BATCH], self._pending[_WRITE_BATCH:]
            if self._writing:
                await self._write()
            elif not self._closing:
                self._wake.clear()

    async def _write(self) -> None:
        """Write one batch where it can be written, and say where that was."""
        records = [record for record, _, _ in self._writing]
        outcome: Durability.ValueType | EventLogUnavailable = Durability.DURABILITY_EVENT_LOG
        if self._spooled or not await self._taken(records):
            try:
                await self._in(self._spool_thread, self._spool.append, records)
                outcome = Durability.DURABILITY_OUTBOX
                if self._oldest is None:
                    self._oldest = self._writing[0][2]
                self._spooled += len(records)
                self._filled.set()
            except EventLogUnavailable as error:
                log.error("%d records could not be written anywhere: %s", len(records), error)
                outcome = error
        written, self._writing = self._writing, []
        for _, future, _ in written:
            if future.done():
                continue  # its caller has gone away
            if isinstance(outcome, EventLogUnavailable):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    async def _taken(self, records: list[Record]) -> bool:
        """Whether the event log has taken them soon; it may take them later, before anything that is drained."""
        appending = self._in(self._log_thread, self._log.append, records)
        done, _ = await asyncio.wait({appending}, timeout=_PATIENCE_SECONDS)
        appending.add_done_callback(lambda done: done.cancelled() or done.exception())
        if done and appending.exception() is None:
            return True
        why = appending.exception() if done else f"no answer for {_PATIENCE_SECONDS:g} s"
        if isinstance(why, BaseException) and not isinstance(why, EventLogUnavailable):
            raise why
        log.warning("the event log does not take %d records, they go to the outbox: %s", len(records), why)
        return False

    async def _drain(self) -> None:
        """Move the spool into the event log, the oldest first, whenever the log takes it."""
        while True:
            try:
                if not self._spooled:
                    self._filled.clear()
                    await self._filled.wait()
                await self._drain_batch()
            except EventLogUnavailable:
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
