"""What this server has to say to the event log, written down before it is acknowledged.

    append() ──▶ pending ──▶ event log                        (batched: one write for all that came meanwhile)
                    │ away, or the spool is not empty
                    ▼
                  spool (SQLite, fsynced) ──drain, in order──▶ event log, when it is back

While anything is in the spool, everything new goes behind it, so that records of one key keep their order. The spool is
bounded; past the bound `append` refuses before anything is accepted. A crash between draining and deleting repeats
records, which changes nothing for their readers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path

import grpc

from plaudit.events import TOPICS, EventLog, EventLogUnavailable, Record, from_beginning
from plaudit.events.sqlite import SqliteLog
from plaudit.v1.feedback_pb2 import Durability
from plaudit_server.metrics import ServerMetrics
from plaudit_server.refusal import Refusal

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_DRAIN_BATCH = 500


class Outbox:
    """Between the server's requests and the event log; owns neither."""

    def __init__(self, event_log: EventLog, spool: Path, *, limit: int, metrics: ServerMetrics) -> None:
        self._log = event_log
        self._spool = SqliteLog(spool)
        self._limit = limit
        self._metrics = metrics
        self._beginning = from_beginning(self._spool, *TOPICS)
        self._spooled = self._spool.lag(self._beginning)
        self._retry_at = 0.0
        self._pending: list[tuple[Record, asyncio.Future[Durability.ValueType]]] = []
        self._wake = asyncio.Event()
        self._closing = False
        metrics.outbox_depth.set_function(self.depth)

    def depth(self) -> int:
        """Records that are not in the event log yet."""
        return self._spooled + len(self._pending)

    def append(self, record: Record) -> asyncio.Future[Durability.ValueType]:
        """Enqueue; the future tells where the record is durable.

        Raises Refusal RESOURCE_EXHAUSTED if the outbox is full. The future raises EventLogUnavailable if neither the
        event log nor the spool could be written.
        """
        if self.depth() >= self._limit:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the event log is away and this server already holds {self._limit} records for it",
                retry_after=5.0,
            )
        future: asyncio.Future[Durability.ValueType] = asyncio.get_running_loop().create_future()
        # Interactions are appended without anybody waiting: their failures are logged where they happen.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._pending.append((record, future))
        self._wake.set()
        return future

    async def run(self) -> None:
        """Write until `close`; then write what is pending and return. The spool stays for next time."""
        while self._pending or not self._closing:
            if not self._pending:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._pause())
            self._wake.clear()
            batch, self._pending = self._pending, []
            if batch:
                await self._write(batch)
            if self._spooled and time.monotonic() >= self._retry_at:
                await self._drain_batch()  # one batch a turn: what is pending does not wait for the whole spool
        self._spool.close()

    def close(self) -> None:
        """Ask `run` to write what is pending and to return."""
        self._closing = True
        self._wake.set()

    async def _write(self, batch: list[tuple[Record, asyncio.Future[Durability.ValueType]]]) -> None:
        records = [record for record, _ in batch]
        durability = Durability.DURABILITY_EVENT_LOG
        try:
            if self._spooled:
                durability = Durability.DURABILITY_OUTBOX
                await asyncio.to_thread(self._spool.append, records)
                self._spooled += len(records)
            else:
                try:
                    await asyncio.to_thread(self._log.append, records)
                except EventLogUnavailable as error:
                    log.warning("event log away, %d records go to the outbox: %s", len(records), error)
                    durability = Durability.DURABILITY_OUTBOX
                    self._retry_at = time.monotonic() + _RETRY_SECONDS
                    await asyncio.to_thread(self._spool.append, records)
                    self._spooled += len(records)
        except EventLogUnavailable as error:
            log.error("%d records could not be written anywhere: %s", len(records), error)
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for _, future in batch:
            if not future.done():
                future.set_result(durability)

    def _pause(self) -> float | None:
        """Seconds until the spool is to be looked at again; None while it is empty."""
        return max(0.0, self._retry_at - time.monotonic()) if self._spooled else None

    async def _drain_batch(self) -> None:
        """Move the oldest of the spool into the event log, if it takes them."""
        try:
            entries = await asyncio.to_thread(self._spool.read, self._beginning, limit=_DRAIN_BATCH)
            records = [Record(entry.topic, entry.key, entry.value) for entry in entries]
            await asyncio.to_thread(self._log.append, records)
            for topic in {entry.topic for entry in entries}:
                last = max(entry.offset for entry in entries if entry.topic == topic)
                await asyncio.to_thread(self._spool.delete_before, topic, last + 1)
            # Counted anew, not subtracted: the spool is what it is, whatever failed in between.
            self._spooled = await asyncio.to_thread(self._spool.lag, self._beginning)
            if not self._spooled:
                log.info("the event log is back; the outbox is empty")
        except EventLogUnavailable:
            self._retry_at = time.monotonic() + _RETRY_SECONDS  # still away; the depth is a metric
