"""The outbox: what is acknowledged is in the event log, or fsynced here and follows in order. A real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from plaudit.broker import EmbeddedBroker
from plaudit.events import FEEDBACK, EventLog, Record, from_beginning, open_log
from plaudit.v1.feedback_pb2 import Durability
from plaudit_server.metrics import ServerMetrics
from plaudit_server.outbox import Outbox
from plaudit_server.refusal import Refusal

IN_LOG, IN_OUTBOX = Durability.DURABILITY_EVENT_LOG, Durability.DURABILITY_OUTBOX


@asynccontextmanager
async def outbox(log: EventLog, spool: Path, limit: int = 1000) -> AsyncIterator[Outbox]:
    box = Outbox(log, spool, limit=limit, metrics=ServerMetrics(CollectorRegistry()))
    running = asyncio.create_task(box.run())
    try:
        yield box
    finally:
        box.close()
        await running


def record(number: int, key: str = "one key") -> Record:
    return Record(FEEDBACK, key, str(number).encode())


def values(log: EventLog) -> list[int]:
    entries = log.read(from_beginning(log, FEEDBACK), limit=10_000, timeout=5)
    return [int(entry.value) for entry in entries]


async def test_with_the_log_there_records_are_in_it_when_acknowledged(tmp_path: Path) -> None:
    with open_log(f"sqlite:{tmp_path / 'events.sqlite'}") as log:
        async with outbox(log, tmp_path / "outbox.sqlite") as box:
            assert await asyncio.gather(*(box.append(record(number)) for number in range(200))) == [IN_LOG] * 200
            assert values(log) == list(range(200))
            assert box.depth() == 0


async def test_what_was_appended_just_before_the_end_is_written(tmp_path: Path) -> None:
    with open_log(f"sqlite:{tmp_path / 'events.sqlite'}") as log:
        async with outbox(log, tmp_path / "outbox.sqlite") as box:
            box.append(record(1))
        assert values(log) == [1]


@pytest.mark.kafka
async def test_away_and_back_nothing_is_lost_and_order_is_kept(tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        log = await asyncio.to_thread(open_log, f"kafka://{broker.address}")
        try:
            async with outbox(log, tmp_path / "outbox.sqlite") as box:
                assert await box.append(record(0)) == IN_LOG
                broker.stop()
                assert await box.append(record(1)) == IN_OUTBOX
                assert (
                    await asyncio.gather(*(box.append(record(number)) for number in range(2, 20))) == [IN_OUTBOX] * 18
                )
                assert box.depth() == 19
            # The server ends while the log is away, and starts again: the outbox is still there.
            async with outbox(log, tmp_path / "outbox.sqlite") as box:
                assert box.depth() == 19
                assert await box.append(record(20)) == IN_OUTBOX, "behind what waits, not before it"
                broker.start()
                last = 20
                async with asyncio.timeout(60):
                    while await box.append(record(last := last + 1)) == IN_OUTBOX:
                        await asyncio.sleep(0.05)  # votes keep coming, and the outbox empties all the same
                assert box.depth() == 0
            # The broker forgot what it had when it was stopped (record 0): it keeps its log in memory.
            assert await asyncio.to_thread(values, log) == list(range(1, last + 1))
        finally:
            await asyncio.to_thread(log.close)


@pytest.mark.kafka
async def test_a_full_outbox_refuses_before_anything_is_accepted(tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        log = await asyncio.to_thread(open_log, f"kafka://{broker.address}")
        broker.stop()
        try:
            async with outbox(log, tmp_path / "outbox.sqlite", limit=3) as box:
                for number in range(3):
                    assert await box.append(record(number)) == IN_OUTBOX
                with pytest.raises(Refusal, match="already holds 3 records") as refused:
                    box.append(record(3))
                assert refused.value.retry_after is not None
        finally:
            await asyncio.to_thread(log.close)
