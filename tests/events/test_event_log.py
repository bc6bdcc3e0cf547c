"""The contract of EventLog, held against both implementations."""

from __future__ import annotations

import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit.events import (
    FEEDBACK,
    INTERACTIONS,
    MAX_VALUE_BYTES,
    POLICIES,
    PROGRESS,
    TOPICS,
    Entry,
    EventLog,
    EventLogUnavailable,
    Record,
    from_beginning,
    open_log,
)
from plaudit.events.tail import Tail

Open: TypeAlias = Callable[[], EventLog]

KEPT = tuple(topic for topic in TOPICS if topic != PROGRESS)
"""Topics of which SQLite's log keeps every record."""


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Each call: the URL of another log."""
    if request.param == "sqlite":
        return lambda: f"sqlite:{tmp_path / uuid.uuid4().hex / 'events.db'}"
    bootstrap = request.getfixturevalue("kafka_bootstrap")
    return lambda: f"kafka://{bootstrap}?prefix=test-{uuid.uuid4().hex}."


@pytest.fixture
def open_again(make_url: Callable[[], str]) -> Iterator[Open]:
    """Each call opens the same log; all are closed afterwards."""
    url = make_url()
    with ExitStack() as stack:
        yield lambda: stack.enter_context(open_log(url))


@pytest.fixture
def log(open_again: Open) -> EventLog:
    return open_again()


def read_all(
    log: EventLog, positions: dict[tuple[str, int], int], *, count: int, limit: int = 1000, within: float = 20.0
) -> list[Entry]:
    """Read on until there are `count` entries, moving `positions` behind each."""
    entries: list[Entry] = []
    deadline = time.monotonic() + within
    while len(entries) < count and (remaining := deadline - time.monotonic()) > 0:
        batch = log.read(positions, limit=limit, timeout=remaining)
        assert len(batch) <= limit
        for entry in batch:
            assert entry.offset >= positions[entry.topic, entry.partition]
            positions[entry.topic, entry.partition] = entry.offset + 1
        entries += batch
    return entries


def pairs(entries: list[Entry]) -> list[tuple[str, bytes]]:
    return sorted((entry.key, entry.value) for entry in entries)


def test_what_is_begun_is_there_in_its_order_when_it_is_done(log: EventLog) -> None:
    begun = [log.begin([Record(FEEDBACK, "key", b"%d" % number)]) for number in range(50)]
    for done in begun:
        done.result(timeout=20)
    assert [entry.value for entry in read_all(log, from_beginning(log, FEEDBACK), count=50)] == [
        b"%d" % number for number in range(50)
    ]
    log.close()
    with pytest.raises(EventLogUnavailable):
        log.begin([Record(FEEDBACK, "key", b"late")]).result(timeout=20)


def test_a_tail_reads_each_entry_once_and_only_of_its_topics(log: EventLog, open_again: Open) -> None:
    tail = Tail(log, FEEDBACK, POLICIES)
    log.append([Record(FEEDBACK, "key", b"0"), Record(INTERACTIONS, "key", b"other"), Record(POLICIES, "key", b"1")])
    said: list[bytes] = []
    fresh = []
    while len(said) < 2:
        anew, entries = tail.read(10)
        fresh.append(anew)
        said += [entry.value for entry in entries]
    assert sorted(said) == [b"0", b"1"]
    assert fresh == [True] + [False] * (len(fresh) - 1), "only the first call begins"
    open_again().append([Record(FEEDBACK, "key", b"2")])
    assert [entry.value for entry in tail.read(10)[1]] == [b"2"]
    assert tail.offset == 2
    log.close()
    with pytest.raises(EventLogUnavailable):
        tail.read(0)


def test_what_is_appended_is_read(log: EventLog) -> None:
    before = time.time()
    records = [
        Record(FEEDBACK, "plain", b"\x00\xff\x80 not text"),
        Record(FEEDBACK, "", b"empty key"),
        Record(FEEDBACK, "empty value", b""),
        Record(FEEDBACK, "Ключ 🔑 鍵", b"unicode key"),
        Record(FEEDBACK, "large", bytes(range(256)) * 4096),
    ]
    log.append(records)

    entries = read_all(log, from_beginning(log, FEEDBACK), count=len(records))

    assert pairs(entries) == sorted((record.key, record.value) for record in records)
    assert {entry.topic for entry in entries} == {FEEDBACK}
    assert all(before - 1 <= entry.appended_at <= time.time() + 1 for entry in entries)


def test_the_largest_value_passes_and_a_larger_one_is_no_record(log: EventLog) -> None:
    log.append([Record(INTERACTIONS, "largest", b"x" * MAX_VALUE_BYTES)])
    (entry,) = read_all(log, from_beginning(log, INTERACTIONS), count=1)
    assert len(entry.value) == MAX_VALUE_BYTES

    with pytest.raises(ValueError, match=r"'too large' .* 4194305 bytes"):
        Record(INTERACTIONS, "too large", b"x" * (MAX_VALUE_BYTES + 1))


def test_records_of_a_key_stay_in_order_in_one_partition(log: EventLog) -> None:
    for start in range(0, 100, 20):
        log.append([Record(FEEDBACK, f"key-{n % 7}", b"%d" % n) for n in range(start, start + 20)])

    seen = defaultdict(list)
    for entry in read_all(log, from_beginning(log, FEEDBACK), count=100):
        seen[entry.key].append((entry.partition, entry.offset, int(entry.value)))

    assert sum(map(len, seen.values())) == 100
    for rows in seen.values():
        assert len({partition for partition, _, _ in rows}) == 1
        assert rows == sorted(rows)
        assert [value for *_, value in rows] == sorted(value for *_, value in rows)


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_reading_on_loses_and_repeats_nothing(open_again: Open, limit: int) -> None:
    log = open_again()
    log.append([Record(FEEDBACK, f"{n}", b"%d" % n) for n in range(30)])
    positions = from_beginning(log, FEEDBACK)
    first = read_all(log, positions, count=15, limit=limit)
    log.append([Record(FEEDBACK, f"{n}", b"%d" % n) for n in range(30, 40)])

    rest = read_all(open_again(), positions, count=40 - len(first), limit=limit)  # as after a restart

    assert sorted(int(entry.value) for entry in first + rest) == list(range(40))


def test_a_position_can_be_read_again(log: EventLog) -> None:
    log.append([Record(POLICIES, f"{n}", b"%d" % n) for n in range(10)])
    entries = read_all(log, from_beginning(log, POLICIES), count=10)
    ((_, partition),) = {(entry.topic, entry.partition) for entry in entries}

    for start in (7, 3, 3, 9, 0):
        again = read_all(log, {(POLICIES, partition): start}, count=10 - start)
        assert [entry.offset for entry in again] == list(range(start, 10))


def test_topics_are_apart_and_only_those_asked_for_are_read(log: EventLog) -> None:
    for topic in TOPICS:
        log.append([Record(topic, "key", topic.encode())])

    for topic in TOPICS:
        (entry,) = read_all(log, from_beginning(log, topic), count=1)
        assert (entry.topic, entry.value) == (topic, topic.encode())
    everything = read_all(log, from_beginning(log, *TOPICS), count=len(TOPICS))
    assert {entry.topic for entry in everything} == set(TOPICS)
    assert log.read({}) == []


def test_an_append_may_touch_several_topics_or_none(log: EventLog) -> None:
    log.append([])
    log.append([Record(INTERACTIONS, "a", b"1"), Record(FEEDBACK, "a", b"2"), Record(INTERACTIONS, "a", b"3")])

    entries = read_all(log, from_beginning(log, INTERACTIONS, FEEDBACK), count=3)

    assert [entry.value for entry in entries if entry.topic == INTERACTIONS] == [b"1", b"3"]
    assert [entry.value for entry in entries if entry.topic == FEEDBACK] == [b"2"]


def test_of_the_progress_topic_the_last_record_of_a_key_is_there(log: EventLog) -> None:
    positions = from_beginning(log, PROGRESS)
    seen: dict[str, bytes] = {}
    for number in range(12):
        log.append([Record(PROGRESS, f"key-{number % 3}", b"%d" % number)])
        if number == 5:
            seen |= {entry.key: entry.value for entry in read_all(log, positions, count=3)}
    while entries := log.read(positions):
        for entry in entries:
            assert entry.offset >= positions[entry.topic, entry.partition]
            positions[entry.topic, entry.partition] = entry.offset + 1
            seen[entry.key] = entry.value
    assert seen == {"key-0": b"9", "key-1": b"10", "key-2": b"11"}


def test_threads_append_together(log: EventLog) -> None:
    threads, each = 8, 25

    def work(thread: int) -> None:
        for n in range(each):
            log.append([Record(FEEDBACK, f"thread-{thread}", b"%d" % n)])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))

    seen = defaultdict(list)
    for entry in read_all(log, from_beginning(log, FEEDBACK), count=threads * each):
        seen[entry.key].append(int(entry.value))
    assert seen == {f"thread-{thread}": list(range(each)) for thread in range(threads)}


def test_threads_read_together(log: EventLog) -> None:
    log.append([Record(FEEDBACK, f"{n}", b"%d" % n) for n in range(60)])

    def work(limit: int) -> list[int]:
        entries = read_all(log, from_beginning(log, FEEDBACK), count=60, limit=limit)
        return sorted(int(entry.value) for entry in entries)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, [3, 11, 20, 1000])) == [list(range(60))] * 4


def test_two_openings_are_one_log(open_again: Open) -> None:
    one, other = open_again(), open_again()
    one.append([Record(FEEDBACK, "from", b"one")])
    other.append([Record(FEEDBACK, "from", b"other")])

    for log in (one, other):
        entries = read_all(log, from_beginning(log, FEEDBACK), count=2)
        assert [entry.value for entry in entries] == [b"one", b"other"]


@pytest.mark.parametrize("same_object", [True, False])
def test_read_waits_and_wakes(open_again: Open, same_object: bool) -> None:
    log = open_again()
    writer = log if same_object else open_again()
    positions = from_beginning(log, FEEDBACK)
    started = threading.Event()

    def wait() -> tuple[list[Entry], float]:
        started.set()
        return list(log.read(positions, timeout=60)), time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        started.wait()
        writer.append([Record(FEEDBACK, "key", b"news")])
        appended = time.monotonic()
        entries, woken = waiting.result(timeout=60)

    assert [entry.value for entry in entries] == [b"news"]
    assert woken - appended < 5


def test_read_gives_up_after_its_timeout(log: EventLog) -> None:
    positions = from_beginning(log, FEEDBACK)
    start = time.monotonic()
    assert log.read(positions, timeout=0.5) == []
    assert 0.5 <= time.monotonic() - start < 5


def test_lag_counts_what_is_not_read(log: EventLog) -> None:
    positions = from_beginning(log, FEEDBACK)
    assert log.lag(positions) == 0
    log.append([Record(FEEDBACK, "one key, so one partition", b"%d" % n) for n in range(20)])

    read_all(log, positions, count=5, limit=5)
    assert log.lag(positions) == 15
    read_all(log, positions, count=15)
    assert log.lag(positions) == 0
    assert log.lag(dict.fromkeys(positions, 0)) == 20


def test_lag_counts_what_other_partitions_hold(log: EventLog) -> None:
    positions = from_beginning(log, FEEDBACK, POLICIES)
    log.append([Record(topic, f"{n}", b"value") for topic in (FEEDBACK, POLICIES) for n in range(10)])
    read_all(log, positions, count=1, limit=1)
    assert log.lag(positions) == 19


def test_identity_names_the_log(make_url: Callable[[], str]) -> None:
    url = make_url()
    with open_log(url) as first, open_log(url) as second, open_log(make_url()) as other:
        identity = first.identity
        first.append([Record(FEEDBACK, "key", b"value")])
        assert first.identity == second.identity == identity != other.identity
    with open_log(url) as again:
        assert again.identity == identity


def test_closing_twice_changes_nothing_and_ends_a_read_that_waits(log: EventLog) -> None:
    log.append([Record(FEEDBACK, "key", b"value")])
    behind = read_all(log, from_beginning(log, FEEDBACK), count=1)[0].offset + 1
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(log.read, {(FEEDBACK, p): behind for p in log.partitions(FEEDBACK)}, timeout=60)
        log.close()
        log.close()
        with pytest.raises(EventLogUnavailable):
            waiting.result(timeout=10)
    with pytest.raises(EventLogUnavailable, match="closed"):
        log.append([Record(FEEDBACK, "key", b"late")])


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite:",
        "postgres://x",
        "kafka:",
        "kafka://",
        "kafka://a:1/topic",
        "kafka://a:1?prefx=b",
        "kafka://a?prefix=/",
    ],
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"event log|prefix"):
        open_log(url)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from(KEPT), st.text(max_size=5), st.binary(max_size=20)), max_size=8),
        max_size=8,
    ),
    limits=st.lists(st.integers(1, 10), min_size=1, max_size=5),
)
def test_reading_in_any_steps_gives_every_record_once_in_order(
    batches: list[list[tuple[str, str, bytes]]], limits: list[int]
) -> None:
    written: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    read: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory, open_log(f"sqlite:{directory}/events.db") as log:
        positions = from_beginning(log, *KEPT)

        def read_some(limit: int) -> int:
            entries = log.read(positions, limit=limit)
            for entry in entries:
                assert entry.offset == positions[entry.topic, entry.partition]  # gapless from 0
                positions[entry.topic, entry.partition] += 1
                read[entry.topic].append((entry.key, entry.value))
            return len(entries)

        for n, batch in enumerate(batches):
            log.append([Record(*record) for record in batch])
            for topic, key, value in batch:
                written[topic].append((key, value))
            read_some(limits[n % len(limits)])
            assert log.lag(positions) == sum(map(len, written.values())) - sum(map(len, read.values()))
        while read_some(limits[0]):
            pass
    assert read == written
