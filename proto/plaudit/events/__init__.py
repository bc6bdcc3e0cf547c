"""The event log: the ordered, durable stream between programs, and the only way they meet.

Records are protobuf messages on named topics. Whoever reads keeps its own positions, so there are no
consumer groups and nothing to commit. Two implementations, one contract (`tests/events/test_event_log.py`): `kafka.py`
for production, `sqlite.py` for one machine and for the server's outbox.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, urlsplit

INTERACTIONS = "plaudit.interactions"
FEEDBACK = "plaudit.feedback"
POLICIES = "plaudit.policies"
ERASURES = "plaudit.erasures"
PROGRESS = "plaudit.progress"
DEAD_LETTERS = "plaudit.dead-letters"
TOPICS = (INTERACTIONS, FEEDBACK, POLICIES, ERASURES, PROGRESS, DEAD_LETTERS)

MAX_VALUE_BYTES = 4 * 2**20
"""The largest value of a record: what a topic's `max.message.bytes` has room for."""

MAX_KEY_BYTES = 4096
"""The longest key of a record, as UTF-8."""

Positions = Mapping[tuple[str, int], int]
"""(topic, partition) → offset of the next record to be read. What is left out of it is not read."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is appended: made by whoever has something to say. Raises ValueError if no log would ever take it.

    That is: a value of more than MAX_VALUE_BYTES, a key of more than MAX_KEY_BYTES or that is not Unicode text.
    """

    topic: str
    key: str
    value: bytes

    def __post_init__(self) -> None:
        # Here, not in append(): an outbox must not take what Kafka will never take from it.
        if len(self.value) > MAX_VALUE_BYTES:
            raise ValueError(
                f"record {self.key!r} for {self.topic}: {len(self.value)} bytes; at most {MAX_VALUE_BYTES}"
            )
        if (size := len(self.key.encode())) > MAX_KEY_BYTES:
            raise ValueError(f"record for {self.topic}: its key has {size} bytes; at most {MAX_KEY_BYTES}")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is read: made by an EventLog. Within a partition, offsets rise in the order of appending."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    appended_at: float
    """Unix time in seconds."""


class EventLogUnavailable(Exception):
    """The log cannot be reached now. What was to be appended may or may not be there: appending it again is right."""


class RecordRefused(EventLogUnavailable):
    """The log is there, and will never take at least one of the records; the others may or may not be there.

    Appending them one by one tells which. Who does not care waits for the log's settings to change, as for the log.
    """


class EventLog(ABC):
    """Append to it, read after a position. Blocking, and safe to call from several threads."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Names this very log: positions in one log mean nothing in another, e.g. in a new one at the same address.

        Raises EventLogUnavailable.
        """

    @abstractmethod
    def append(self, records: Sequence[Record]) -> None:
        """Append all, in order; durable when it returns (Kafka: acks=all; SQLite: fsynced).

        Records of one key stay in order. Raises EventLogUnavailable; RecordRefused if trying again is of no use.
        """

    def begin(self, records: Sequence[Record]) -> Future[None]:
        """Begin to append all, in the order of calls from one thread; the future is done when they are durable.

        It fails as `append` does, which is what this does where a log takes one batch after the other.
        """
        done: Future[None] = Future()
        try:
            done.set_result(self.append(records))
        except EventLogUnavailable as error:
            done.set_exception(error)
        return done

    @abstractmethod
    def partitions(self, topic: str) -> Sequence[int]:
        """The partitions of a topic of `TOPICS`. Raises EventLogUnavailable."""

    @abstractmethod
    def read(self, positions: Positions, *, limit: int = 1000, timeout: float = 0.0) -> Sequence[Entry]:
        """Up to `limit` entries at or after `positions`, partition by partition in order of offset.

        Waits up to `timeout` seconds for the first one, and returns what there is then; nothing is an empty list. A
        position before the oldest retained entry reads from that one. Raises EventLogUnavailable.
        """

    @abstractmethod
    def lag(self, positions: Positions) -> int:
        """How many entries lie at or after `positions`, as far as the last `read` could see.

        Raises EventLogUnavailable.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what it holds; bounded in time. Calling it again changes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def from_beginning(log: EventLog, *topics: str) -> dict[tuple[str, int], int]:
    """The positions before everything in `topics`."""
    return {(topic, partition): 0 for topic in topics for partition in log.partitions(topic)}


def open_log(url: str) -> EventLog:
    """The log at `url`, made, with its topics, if it is not there.

    `sqlite:PATH`, or `kafka://HOST:PORT[,HOST:PORT…][?prefix=PREFIX&…]`; the prefix stands before the topics' names,
    and the other parameters say how the brokers are reached by TLS and SASL: `kafka_security.py`.
    Raises ValueError for any other URL, EventLogUnavailable if the file cannot be opened or Kafka does not answer.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest:
        from plaudit.events.sqlite import SqliteLog

        return SqliteLog(Path(rest))
    parts = urlsplit(url)
    if scheme == "kafka" and parts.netloc and not parts.path.strip("/"):
        from plaudit.events.kafka import KafkaLog
        from plaudit.events.kafka_security import KafkaSecurity

        pairs = parse_qsl(parts.query, keep_blank_values=True)
        query = dict(pairs)
        prefix = query.pop("prefix", "")
        try:
            if len(pairs) != len(dict(pairs)):
                raise ValueError("a parameter stands twice; give each once")
            security = KafkaSecurity.from_query(query)
            security.options()  # a file that is missing is a mistake now; later it may only be on its way
        except ValueError as error:
            raise ValueError(f"event log {url!r}: {error}") from None
        return KafkaLog(parts.netloc.split(","), prefix=prefix, security=security)
    raise ValueError(f"event log {url!r}: give sqlite:PATH or kafka://HOST:PORT[,HOST:PORT…][?prefix=PREFIX&…]")
