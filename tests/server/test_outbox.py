"""The outbox: what is acknowledged is in the event log, or fsynced here and follows in order. A real broker."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from plaudit import dead_letters
from plaudit.broker import EmbeddedBroker
from plaudit.events import (
    DEAD_LETTERS,
    FEEDBACK,
    EventLog,
    EventLogUnavailable,
    Record,
    RecordRefused,
    from_beginning,
    kafka,
    open_log,
)
from plaudit.v1.events_pb2 import DeadLetter
from plaudit.v1.feedback_pb2 import Durability
from plaudit_server.metrics import ServerMetrics
from plaudit_server.outbox import Outbox
from plaudit_server.refusal import Refusal
from plaudit_server.refused import Refused

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


@contextmanager
def away(log_file: Path) -> Iterator[None]:
    """An SQLite event log that cannot be written to meanwhile: its lock is held."""
    with closing(sqlite3.connect(log_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow past 200,000 bytes meanwhile."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def until_empty(box: Outbox) -> None:
    async with asyncio.timeout(60):
        while box.depth():
            await asyncio.sleep(0.02)


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
async def test_what_was_spooled_follows_before_the_end_if_the_log_is_back(tmp_path: Path) -> None:
    with open_log(f"sqlite:{tmp_path / 'log'}") as log:
        async with outbox(log, tmp_path / "spool") as box:
            with away(tmp_path / "log"):
                assert await box.append(Record(FEEDBACK, "k", b"v")) == IN_OUTBOX
            assert box.depth() == 1
        assert box.depth() == 0
        assert [entry.value for entry in log.read(from_beginning(log, FEEDBACK))] != []


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


@pytest.mark.kafka
async def test_nobody_waits_for_a_broker_that_hangs(tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        log = await asyncio.to_thread(kafka.KafkaLog, [broker.address], timeout=60)
        try:
            async with outbox(log, tmp_path / "outbox.sqlite") as box:
                assert await box.append(record(0)) == IN_LOG
                assert broker._process is not None
                broker._process.send_signal(signal.SIGSTOP)
                try:
                    async with asyncio.timeout(30):  # half of what the log itself waits
                        assert [await box.append(record(number)) for number in range(1, 20)] == [IN_OUTBOX] * 19
                finally:
                    broker._process.send_signal(signal.SIGCONT)
                await until_empty(box)
            read = await asyncio.to_thread(values, log)
            assert sorted(set(read)) == list(range(20))
            assert list(dict.fromkeys(read)) == list(range(20)), "in order, though perhaps twice"
        finally:
            await asyncio.to_thread(log.close)


@pytest.mark.kafka
async def test_what_kafka_will_never_take_does_not_keep_the_rest_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "_MAX_BATCH_BYTES", 10_000)  # as of a cluster that somebody has set up otherwise
    large, other = (Record(FEEDBACK, key, b"x" * 20_000) for key in ("large", "other"))
    with EmbeddedBroker() as broker:
        log = await asyncio.to_thread(open_log, f"kafka://{broker.address}")
        try:
            async with outbox(log, tmp_path / "outbox.sqlite") as box:
                assert await asyncio.gather(
                    box.append(record(0)), box.append(large), box.append(other), box.append(record(1))
                )
                await until_empty(box)
                assert await box.append(record(2)) == IN_LOG
            assert sorted(set(await asyncio.to_thread(values, log))) == [0, 1, 2]
            letters = await asyncio.to_thread(log.read, from_beginning(log, DEAD_LETTERS), timeout=5)
        finally:
            await asyncio.to_thread(log.close)
    letter, second = (DeadLetter.FromString(entry.value) for entry in letters)
    assert (letter.topic, letter.key, letter.value) == (FEEDBACK, "large", b""), "the letter, too, must fit"
    assert "refused.sqlite" in letter.reason
    assert dead_letters.name(letter) != dead_letters.name(second), "or one would hide the other, and what intake finds"
    assert "20,000 bytes" in (dead_letters.refusal(letter) or ""), "what is not there cannot be replayed"
    with open_log(f"sqlite:{tmp_path / 'refused.sqlite'}") as aside:
        assert [entry.value for entry in aside.read(from_beginning(aside, FEEDBACK))] == [large.value, other.value]


def test_what_is_refused_is_put_aside_once_however_often_its_letter_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_log(f"sqlite:{tmp_path / 'events.sqlite'}") as log:
        append, away = log.append, [True]

        def picky(records: Sequence[Record]) -> None:
            if records[0].topic != DEAD_LETTERS:
                raise RecordRefused("too large")
            if away[0]:
                raise EventLogUnavailable("no right to write there")
            append(records)

        monkeypatch.setattr(log, "append", picky)
        refused = Refused(log, tmp_path / "refused.sqlite", ServerMetrics(CollectorRegistry()))
        for _ in range(3):
            with pytest.raises(EventLogUnavailable):
                refused.append(record(1))
        away[0] = False
        refused.append(record(1))
        refused.append(record(1))
        refused.close()
        assert len({dead_letters.name(letter) for letter in dead_letters.read(log)}) == 1
    with open_log(f"sqlite:{tmp_path / 'refused.sqlite'}") as aside:
        assert len(aside.read(from_beginning(aside, FEEDBACK))) == 1


async def test_depth_and_age_are_told_at_once_after_a_restart(tmp_path: Path) -> None:
    registry, spool = CollectorRegistry(), tmp_path / "outbox.sqlite"
    with open_log(f"sqlite:{tmp_path / 'events.sqlite'}") as log:
        with away(tmp_path / "events.sqlite"):
            async with outbox(log, spool) as box:
                assert box.age() == 0
                before = time.time()
                assert await box.append(record(1)) == IN_OUTBOX
                assert await box.append(record(2)) == IN_OUTBOX
        Outbox(log, spool, limit=10, metrics=ServerMetrics(registry))
        assert registry.get_sample_value("plaudit_outbox_depth") == 2
        age = registry.get_sample_value("plaudit_outbox_oldest_seconds")
        assert age is not None
        assert 0 < age <= time.time() - before
        async with outbox(log, spool) as box:
            await until_empty(box)
            assert box.age() == 0
        assert sorted(set(values(log))) == [1, 2]


async def test_after_the_end_nothing_is_taken_in_silence(tmp_path: Path) -> None:
    with open_log(f"sqlite:{tmp_path / 'events.sqlite'}") as log:
        async with outbox(log, tmp_path / "outbox.sqlite") as box:
            await box.append(record(0))
        with pytest.raises(Refusal, match="stopping"):
            box.append(record(1))


@pytest.mark.kafka
async def test_a_full_disk_acknowledges_nothing_and_drains_nothing_twice(tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        log = await asyncio.to_thread(open_log, f"kafka://{broker.address}")
        try:
            async with outbox(log, tmp_path / "outbox.sqlite") as box:
                broker.stop()
                waiting = [Record(FEEDBACK, "one key", b"%01000d" % number) for number in range(300)]
                assert await asyncio.gather(*map(box.append, waiting)) == [IN_OUTBOX] * 300
                with full_disk():
                    with pytest.raises(EventLogUnavailable):
                        await box.append(record(300))
                    broker.start()
                    await until_empty(box)  # though what was drained cannot be deleted from the spool
                    assert await box.append(record(300)) == IN_LOG
            assert await asyncio.to_thread(values, log) == list(range(301))
        finally:
            await asyncio.to_thread(log.close)


APPEND_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from plaudit.events import FEEDBACK, Record
from plaudit.events.sqlite import SqliteLog
from plaudit_server.metrics import ServerMetrics
from plaudit_server.outbox import Outbox

async def main(directory, first):
    log = SqliteLog(directory / "events.sqlite", busy_timeout=0.5)
    box = Outbox(log, directory / "outbox.sqlite", limit=10**6, metrics=ServerMetrics(CollectorRegistry()))
    running = asyncio.create_task(box.run())
    for number in range(first, 10**9):
        await box.append(Record(FEEDBACK, "one key", b"%d" % number))
        print(number, flush=True)

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


def killed_again_and_again(directory: Path) -> int:
    """Run APPEND_FOR_EVER, hold the log's lock now and then, kill it; returns how many it has acknowledged in all."""
    chance, following = random.Random(4), 0
    for _ in range(6):
        command = [sys.executable, "-c", APPEND_FOR_EVER, str(directory), str(following)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 20)):
                following = int(process.stdout.readline()) + 1
            with away(directory / "events.sqlite"):
                for _ in range(chance.randrange(20)):
                    following = int(process.stdout.readline()) + 1
                if chance.random() < 0.5:
                    process.kill()
            for _ in range(chance.randrange(20)):
                following = int(line) + 1 if (line := process.stdout.readline()) else following
            process.kill()
            for line in process.stdout:
                following = max(following, int(line) + 1 if line.endswith("\n") else 0)
    return following


async def test_killed_anywhere_while_the_log_comes_and_goes_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    acknowledged = await asyncio.to_thread(killed_again_and_again, tmp_path)
    with open_log(f"sqlite:{tmp_path / 'events.sqlite'}") as log:
        async with outbox(log, tmp_path / "outbox.sqlite") as box:
            await until_empty(box)
        read = values(log)
    assert set(range(acknowledged)) <= set(read)
    assert list(dict.fromkeys(read)) == sorted(set(read)), "in order, though perhaps twice"
