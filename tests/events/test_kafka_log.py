"""What only KafkaLog promises: a broker that goes away, comes back, or is replaced."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from plaudit.broker import EmbeddedBroker, free_port
from plaudit.events import (
    DEAD_LETTERS,
    ERASURES,
    FEEDBACK,
    INTERACTIONS,
    POLICIES,
    TOPICS,
    EventLogUnavailable,
    Record,
    from_beginning,
    open_log,
)
from plaudit.events.kafka import KafkaLog
from plaudit.events.tail import Tail
from tests.events.slow_broker import SlowBroker
from tests.fixtures_broker import delete_topics

pytestmark = pytest.mark.kafka

TIMEOUT = 1.0
BOUND = 8.0  # seconds within which a call with TIMEOUT must have given up, on a busy machine too


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    """One of our own, to be stopped."""
    with EmbeddedBroker() as broker:
        yield broker


def test_topics_are_made_as_they_should_be(kafka_bootstrap: str) -> None:
    with KafkaLog([kafka_bootstrap], prefix=f"test-{uuid.uuid4().hex}.", partitions=5) as log:
        assert list(log.partitions(INTERACTIONS)) == list(range(5))
        assert list(log.partitions(FEEDBACK)) == list(range(5))
        assert list(log.partitions(POLICIES)) == [0]
        assert list(log.partitions(DEAD_LETTERS)) == [0]


def test_many_may_open_a_new_log_together(kafka_bootstrap: str) -> None:
    url = f"kafka://{kafka_bootstrap}?prefix=test-{uuid.uuid4().hex}."

    def work(n: int) -> str:
        with open_log(url) as log:
            log.append([Record(FEEDBACK, f"{n}", b"value")])
            return log.identity

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(work, range(4)))) == 1


def test_no_broker_is_unavailable_soon_and_the_message_says_where() -> None:
    address = f"127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(EventLogUnavailable, match=address):
        KafkaLog([address], timeout=TIMEOUT)
    assert time.monotonic() - start < BOUND


@pytest.mark.parametrize("first", ["append", "read"])
def test_a_broker_that_is_away_and_comes_back(broker: EmbeddedBroker, first: str) -> None:
    with KafkaLog([broker.address], timeout=TIMEOUT) as log:
        log.append([Record(FEEDBACK, "key", b"before")])
        positions = from_beginning(log, FEEDBACK)
        assert [entry.value for entry in log.read(positions, timeout=10)] == [b"before"]
        calls: dict[str, Callable[[], object]] = {
            "append": lambda: log.append([Record(FEEDBACK, "key", b"meanwhile")]),
            "read": lambda: log.read(positions, timeout=0.5),
        }

        broker.stop()
        for call in (first, "append", "read"):
            start = time.monotonic()
            with pytest.raises(EventLogUnavailable, match=broker.address):
                calls[call]()
            assert time.monotonic() - start < BOUND

        broker.start()
        log.append([Record(FEEDBACK, "key", b"after")])
        assert [entry.value for entry in log.read(positions, timeout=10)] == [b"after"]


def test_a_call_that_waits_while_the_broker_goes_away(broker: EmbeddedBroker) -> None:
    with KafkaLog([broker.address], timeout=TIMEOUT) as log, ThreadPoolExecutor(1) as pool:
        positions = from_beginning(log, FEEDBACK)
        log.read(positions)
        waiting = pool.submit(log.read, positions, timeout=60)
        broker.stop()
        with pytest.raises(EventLogUnavailable, match=broker.address):
            waiting.result(timeout=BOUND)


def test_threads_that_find_no_broker_wait_together(broker: EmbeddedBroker) -> None:
    with KafkaLog([broker.address], timeout=TIMEOUT) as log, ThreadPoolExecutor(20) as pool:
        broker.stop()

        def work(n: int) -> float:
            start = time.monotonic()
            with pytest.raises(EventLogUnavailable):
                log.append([Record(FEEDBACK, f"{n}", b"value")])
            with pytest.raises(EventLogUnavailable):
                log.append([Record(FEEDBACK, f"{n}", b"value")])
            return time.monotonic() - start

        assert max(pool.map(work, range(20))) < 3 * BOUND  # not each 20 times


def test_a_producer_that_never_reached_its_broker_is_closed_too(broker: EmbeddedBroker) -> None:
    with KafkaLog([broker.address], timeout=TIMEOUT) as log:
        broker.stop()
        with pytest.raises(EventLogUnavailable, match=broker.address):
            log.append([Record(FEEDBACK, "key", b"value")])
        names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if "kafka" in name.lower()]


@pytest.mark.parametrize("first", ["append", "read"])
def test_a_replaced_log_is_another_log(broker: EmbeddedBroker, first: str) -> None:
    """A memory-only broker that restarts unnoticed: nothing of the new log passes for something of the old."""
    with KafkaLog([broker.address], timeout=TIMEOUT) as log:
        log.append([Record(FEEDBACK, "key", b"old")])
        positions = from_beginning(log, FEEDBACK)
        (entry,) = log.read(positions, timeout=10)
        identity = log.identity
        broker.stop()
        broker.start()
        with KafkaLog([broker.address], timeout=TIMEOUT) as other:
            other.append([Record(FEEDBACK, "key", b"new 0"), Record(FEEDBACK, "key", b"new 1")])

        if first == "append":
            try:
                log.append([Record(FEEDBACK, "key", b"new 2")])
            except EventLogUnavailable:
                log.append([Record(FEEDBACK, "key", b"new 2")])
        if log.identity == identity:
            with pytest.raises(EventLogUnavailable, match="replaced"):
                log.read({**positions, (FEEDBACK, entry.partition): entry.offset + 1}, timeout=10)
        assert log.identity != identity
        assert log.read(positions, timeout=10)[0].value == b"new 0"


def test_a_tail_begins_again_in_a_replaced_log(broker: EmbeddedBroker) -> None:
    with KafkaLog([broker.address], timeout=TIMEOUT) as log:
        log.append([Record(FEEDBACK, "key", b"old")])
        tail = Tail(log, FEEDBACK)
        assert [entry.value for entry in tail.read(10)[1]] == [b"old"]
        broker.stop()
        broker.start()
        with KafkaLog([broker.address], timeout=TIMEOUT) as other:
            other.append([Record(FEEDBACK, "key", b"new 0"), Record(FEEDBACK, "key", b"new 1")])
        fresh = False
        said: list[bytes] = []
        while len(said) < 2:
            try:
                anew, entries = tail.read(10)
            except EventLogUnavailable:  # it says so once or twice before it goes on
                continue
            fresh |= anew
            said += [entry.value for entry in entries]
        assert fresh
        assert said == [b"new 0", b"new 1"]


@pytest.mark.parametrize("also", [(), (POLICIES,)])
def test_topics_that_were_made_anew_are_another_log(kafka_bootstrap: str, also: tuple[str, ...]) -> None:
    """In the same cluster; also if only one of them was, which the reader sees when it reads that one."""
    prefix = f"test-{uuid.uuid4().hex}."
    with KafkaLog([kafka_bootstrap], prefix=prefix) as log:
        log.append([Record(FEEDBACK, "key", b"old 0"), Record(FEEDBACK, "key", b"old 1")])
        tail, identity = Tail(log, FEEDBACK, *also), log.identity
        assert [entry.value for entry in tail.read(10)[1]] == [b"old 0", b"old 1"]
        delete_topics(kafka_bootstrap, *(prefix + topic for topic in (also or TOPICS)))
        with KafkaLog([kafka_bootstrap], prefix=prefix) as other:  # makes what is missing
            assert other.identity != identity
            other.append([Record(topic, "key", b"new") for topic in (also or (FEEDBACK,))])
            with pytest.raises(EventLogUnavailable, match="made anew"):
                tail.read(10)
            anew, entries = tail.read(10)
            assert log.identity == other.identity
    assert anew
    assert {entry.value for entry in entries} >= {b"new"}


def test_a_slow_broker_is_not_the_end_of_the_log() -> None:
    """What is not heard of at once may be there: the first read says so, and so does each that changes topics."""
    with SlowBroker() as broker, KafkaLog([broker.address]) as log:
        log.append([Record(POLICIES, "v1", b"policy"), Record(ERASURES, "ann", b"erasure")])
        broker.seconds = 0.4
        anew, entries = Tail(log, POLICIES).read(0)
        assert (anew, [entry.value for entry in entries]) == (True, [b"policy"])
        assert [entry.value for entry in log.read(from_beginning(log, ERASURES))] == [b"erasure"]
        broker.seconds = 0.0
        log.append([Record(POLICIES, "v2", b"appended before the call")])
        broker.seconds = 0.4
        assert [entry.value for entry in log.read({(POLICIES, 0): 1})] == [b"appended before the call"]


def test_a_broker_that_answers_all_but_fetches_is_unavailable() -> None:
    with SlowBroker() as broker, KafkaLog([broker.address], timeout=TIMEOUT) as log:
        log.append([Record(POLICIES, "v1", b"policy")])
        broker.fetch_seconds = 600
        start = time.monotonic()
        with pytest.raises(EventLogUnavailable, match="answered a fetch"):
            Tail(log, POLICIES).read(0)
        assert time.monotonic() - start < BOUND
        broker.fetch_seconds = 0
        assert [entry.value for entry in Tail(log, POLICIES).read(0)[1]] == [b"policy"]


def test_closing_is_bounded_while_the_broker_is_away(broker: EmbeddedBroker) -> None:
    log = KafkaLog([broker.address], timeout=TIMEOUT)
    with ThreadPoolExecutor(2) as pool:
        pool.submit(log.read, from_beginning(log, FEEDBACK), timeout=60)
        broker.stop()
        pool.submit(log.append, [Record(FEEDBACK, "key", b"on its way")])
        start = time.monotonic()
        log.close()
        assert time.monotonic() - start < BOUND
    with pytest.raises(EventLogUnavailable, match="closed"):
        log.append([Record(FEEDBACK, "key", b"late")])


def test_a_record_that_fails_before_the_next_is_sent_is_one_failure(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kafka.errors import KafkaError  # after plaudit.events.kafka, which keeps quiet what importing it is warned of

    with KafkaLog([kafka_bootstrap], prefix=f"test-{uuid.uuid4().hex}.") as log:
        connection = log._connection
        assert connection is not None

        def begin(records: object, settle: Callable[[Exception | None], None]) -> None:
            settle(KafkaError("the batch was given up"))  # as kafka-python's own thread does when it is closed
            raise KafkaError("closed")

        monkeypatch.setattr(connection, "begin", begin)
        with pytest.raises(EventLogUnavailable, match="given up"):
            log.begin([Record(FEEDBACK, "key", b"value")]).result(timeout=TIMEOUT)
