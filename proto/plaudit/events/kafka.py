"""The event log on Kafka: what production runs.

A `KafkaLog` works through a connection (a producer and a consumer, pinned to one cluster id and the topics' ids) which
it throws away after the first failure and makes anew at the next call. So a broker that was away or was replaced, and
topics that were deleted and made anew, need no restart of ours, and what is read always comes from the log that
`identity` names.

Not used, on purpose: consumer groups (readers keep their own positions), and `end_offsets`, `latest` and
`offsets_for_times`, which the broker of the tests answers wrongly.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, NamedTuple

from plaudit.events import (
    ERASURES,
    FEEDBACK,
    INTERACTIONS,
    MAX_VALUE_BYTES,
    POLICIES,
    PROGRESS,
    TOPICS,
    Entry,
    EventLog,
    EventLogUnavailable,
    Positions,
    Record,
    RecordRefused,
)
from plaudit.events.kafka_security import KafkaSecurity

with warnings.catch_warnings():  # kafka-python 3.0.12 loads its schemas by what Python 3.11 deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
    from kafka.errors import (
        InvalidRecordError,
        InvalidTimestampError,
        KafkaError,
        KafkaTimeoutError,
        MessageSizeTooLargeError,
        NoError,
        PolicyViolationError,
        RecordListTooLargeError,
        TopicAlreadyExistsError,
        for_code,
    )
    from kafka.net.compat import KafkaNetClient
    from kafka.net.inet import KafkaNetSocket

# It reports each attempt to reach a broker that is away; callers are told once, by EventLogUnavailable.
if logging.getLogger("kafka").level == logging.NOTSET:
    logging.getLogger("kafka").setLevel(logging.CRITICAL + 1)

# What a broker (or the producer before it) says of a record, and will say again of the same one.
_FOR_EVER = (
    InvalidRecordError,
    InvalidTimestampError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
)
_SPREAD = frozenset({INTERACTIONS, FEEDBACK})
_COMPACTED = frozenset({POLICIES, ERASURES, PROGRESS})
# Written every few seconds, and only the last record of a key counts: without these, a week of them would be kept in
# the segment that is written to, which no broker compacts.
_SHORT = {"segment.ms": "600000", "min.cleanable.dirty.ratio": "0.1"}
_MAX_BATCH_BYTES = 2 * MAX_VALUE_BYTES  # the value, its key and Kafka's framing
_FETCH_SECONDS = 0.1  # how long a broker holds a fetch that has nothing to give
_RETRY_SECONDS = 0.1
_CLOSE_SECONDS = 1.0
_POLL_SECONDS = 0.5  # how long a waiting `read` keeps the consumer from other threads


class KafkaLog(EventLog):
    """The log on the Kafka cluster behind `bootstrap_servers` (`HOST:PORT`), its topics named `prefix` + name.

    Topics that are not there are made: `plaudit.interactions` and `plaudit.feedback` with `partitions` partitions, the
    others with one, with the cluster's replication factor unless one is given. `security` says whether by TLS and SASL.
    A call gives up when no broker has answered for `timeout` seconds. Raises EventLogUnavailable, ValueError for a
    prefix that Kafka would refuse.
    """

    def __init__(
        self,
        bootstrap_servers: Sequence[str],
        *,
        prefix: str = "",
        partitions: int = 3,
        replication_factor: int = -1,
        timeout: float = 5.0,
        security: KafkaSecurity = KafkaSecurity(),  # noqa: B008 (immutable)
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,200}", prefix):
            raise ValueError(f"prefix {prefix!r}: up to 200 letters, digits, '.', '_' and '-'")
        self._servers = list(bootstrap_servers)
        self._prefix = prefix
        self._timeout = timeout
        self._security = security
        self._topics = {
            prefix + topic: {
                "num_partitions": partitions if topic in _SPREAD else 1,
                "replication_factor": replication_factor,
                "configs": {
                    "cleanup.policy": "compact" if topic in _COMPACTED else "delete",
                    "max.message.bytes": str(_MAX_BATCH_BYTES),
                    **(_SHORT if topic == PROGRESS else {}),
                },
            }
            for topic in TOPICS
        }
        self._opening = threading.Lock()
        self._connection: _Connection | None = None
        self._failures = 0
        self._closed = False
        with self._connected():
            pass

    @property
    def identity(self) -> str:
        """The cluster's id, the prefix, and after a `#` a hash of the topics' ids, if brokers give them (Kafka 2.8).

        It changes only in a call that has raised EventLogUnavailable before.
        """
        with self._connected() as connection:
            log = f"kafka:{connection.cluster_id}/{self._prefix}"
            ids = "".join(f"{topic}={made}\n" for topic, made in sorted(connection.topic_ids.items()))
        return f"{log}#{hashlib.sha256(ids.encode()).hexdigest()[:16]}" if ids else log

    def append(self, records: Sequence[Record]) -> None:
        """Append all; acknowledged by all in-sync replicas when it returns."""
        with self._connected() as connection:
            connection.send(self._addressed(records))

    def begin(self, records: Sequence[Record]) -> Future[None]:
        """As `EventLog.begin`; several batches may be on their way at once. A failure keeps the connection."""
        done: Future[None] = Future()

        def settle(error: KafkaError | None) -> None:
            with contextlib.suppress(InvalidStateError):  # a later record could not even be sent
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(self._explained(error))

        try:
            with self._connected() as connection:
                connection.begin(self._addressed(records), settle)
        except EventLogUnavailable as error:
            with contextlib.suppress(InvalidStateError):  # an earlier record has failed already
                done.set_exception(error)
        return done

    def partitions(self, topic: str) -> Sequence[int]:
        """The partitions that Kafka has of it, which may be more than were asked for."""
        with self._connected() as connection:
            return sorted(connection.producer.partitions_for(self._prefix + topic))

    def read(self, positions: Positions, *, limit: int = 1000, timeout: float = 0.0) -> Sequence[Entry]:
        """As `EventLog.read`; to know that there is nothing takes about 0.2 s, even with a `timeout` of 0.

        Behind a slow broker it takes longer: nothing means that each partition has said so to a request made since the
        call began. Raises EventLogUnavailable if one has not within the log's timeout. A position beyond the end (the
        topic was made anew) is read from the oldest entry.
        """
        if not positions:
            return []
        deadline = time.monotonic() + timeout
        wanted = {TopicPartition(self._prefix + topic, partition): at for (topic, partition), at in positions.items()}
        while True:
            seconds = min(max(deadline - time.monotonic(), 0.0), _POLL_SECONDS)
            with self._connected() as connection:
                batches = connection.fetch(wanted, limit, seconds)
            if batches or time.monotonic() >= deadline:
                return [self._entry(record) for batch in batches.values() for record in batch]

    def lag(self, positions: Positions) -> int:
        """The distance from `positions` to the ends that the last `read` saw; what it did not read from counts 0.

        More than there is if the topic is compacted, or if a position is before the oldest entry. A partition that gave
        that `read` no answer (another broker's did) counts 1: what it holds is not known, so that all is not read.
        """
        with self._connected() as connection:
            ends = {
                (topic, partition): connection.end(TopicPartition(self._prefix + topic, partition), at)
                for (topic, partition), at in positions.items()
            }
        return sum(max(0, ends[partition] - at) for partition, at in positions.items())

    def close(self) -> None:
        """Close the connection, within about two seconds. Who waits in another call is told by EventLogUnavailable."""
        with self._opening:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _entry(self, record: Any) -> Entry:
        return Entry(
            topic=record.topic.removeprefix(self._prefix),
            partition=record.partition,
            offset=record.offset,
            key=(record.key or b"").decode(errors="replace"),
            value=record.value or b"",
            appended_at=record.timestamp / 1000,
        )

    @contextlib.contextmanager
    def _connected(self) -> Iterator[_Connection]:
        connection = None
        try:
            connection = self._connect()
            yield connection
        except (KafkaError, RuntimeError) as error:  # RuntimeError: its event loop was closed by another thread, …
            if connection is not None and not isinstance(error, _FOR_EVER):
                self._drop(connection)
            raise self._explained(error) from error

    def _connect(self) -> _Connection:
        failures = self._failures
        with self._opening:
            if self._closed:
                raise self._unavailable("closed")
            if self._connection is None:
                if self._failures != failures:
                    # This thread has waited for another's attempt that failed; waiting for one more would add up.
                    raise self._unavailable("no broker answers")
                options: Mapping[str, object] = {}
                try:
                    options = self._options()
                    self._connection = _Connection(self._servers, self._topics, self._timeout, options)
                except (KafkaError, RuntimeError) as error:
                    self._failures += 1
                    if why := getattr(options.get("ssl_context"), "failure", None):
                        raise KafkaError(f"{error}; the last TLS handshake failed: {why}") from error
                    raise
            return self._connection

    def _options(self) -> Mapping[str, object]:
        try:
            return self._security.options()
        except ValueError as error:  # a secret that is being renewed: the next attempt looks again
            raise KafkaError(str(error)) from error

    def _drop(self, connection: _Connection) -> None:
        with self._opening:
            if self._connection is not connection:
                return
            self._connection = None
        connection.close()

    def _addressed(self, records: Sequence[Record]) -> list[tuple[str, bytes, bytes]]:
        return [(self._prefix + record.topic, record.key.encode(), record.value) for record in records]

    def _explained(self, error: Exception) -> EventLogUnavailable:
        if isinstance(error, _FOR_EVER):
            return RecordRefused(f"event log kafka://{','.join(self._servers)}: {error}")
        return self._unavailable(str(error) or type(error).__name__)

    def _unavailable(self, why: str) -> EventLogUnavailable:
        return EventLogUnavailable(f"event log kafka://{','.join(self._servers)}: {why}")


class _ClosingSocket(KafkaNetSocket):  # type: ignore[misc, unused-ignore]
    """No proxy: the seam by which sockets can be closed that kafka-python leaves open when they could not connect."""

    SCHEMES = ("plaudit-direct",)

    async def sock_connect(self, net: Any, sock: Any, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


class _Answer(NamedTuple):
    """Of a partition, to a fetch."""

    asked: float  # when, by the monotonic clock
    nothing: bool  # there was nothing at the position
    end: int


class _Connection:
    """A producer and a consumer, made for one cluster. After a KafkaError of any method it is only to be closed."""

    def __init__(
        self,
        servers: Sequence[str],
        topics: Mapping[str, Mapping[str, object]],
        timeout: float,
        security: Mapping[str, object],
    ) -> None:
        self._timeout = timeout
        self._reading = threading.Lock()  # kafka-python's producer is thread-safe, its consumer is not
        self._positions: dict[Any, int] = {}
        self._ends: dict[Any, int] = {}
        self._answers: dict[Any, _Answer] = {}  # the last ones since the partitions were assigned
        self._consumer: Any = None
        self.producer: Any = None
        milliseconds = int(timeout * 1000)
        common = {
            "bootstrap_servers": list(servers),
            "bootstrap_timeout_ms": milliseconds,
            "request_timeout_ms": milliseconds,
            "reconnect_backoff_max_ms": 1000,
            "proxy_url": f"{_ClosingSocket.SCHEMES[0]}://",
            **security,
        }
        try:
            self._consumer, self._client = _make(
                KafkaConsumer,
                common,
                group_id=None,
                auto_offset_reset="earliest",
                fetch_max_wait_ms=int(_FETCH_SECONDS * 1000),
                enable_incremental_fetch_sessions=False,  # so that each answer names each partition
                metrics_enabled=False,
            )
            self._listen(self._consumer._fetcher)
            self.cluster_id: str = self._client.cluster.cluster_id
            self.topic_ids: dict[str, Any] = {}
            self._make_missing(topics, common)
            made = {topic: self._client.cluster.topic_id(topic) for topic in topics}
            self.topic_ids = {topic: known for topic, known in made.items() if known is not None}
            self.producer, _ = _make(
                KafkaProducer,
                common,
                acks="all",
                enable_idempotence=True,
                max_request_size=_MAX_BATCH_BYTES,
                max_block_ms=milliseconds,
                delivery_timeout_ms=milliseconds,
                metrics_enabled=False,
            )
        except BaseException:
            self.close()
            raise

    def send(self, records: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Send (topic, key, value)s; returns when all are acknowledged."""
        futures = [self.producer.send(topic, key=key, value=value) for topic, key, value in records]
        # The producer gives each one up after `delivery_timeout_ms`; a little more, so that its own error is seen.
        deadline = time.monotonic() + self._timeout + 1
        for future in futures:
            future.get(timeout=max(0.0, deadline - time.monotonic()))

    def begin(self, records: Sequence[tuple[str, bytes, bytes]], settle: Callable[[KafkaError | None], None]) -> None:
        """Send (topic, key, value)s; `settle` is called once, by any thread, when all are acknowledged or one failed.

        The producer gives each one up after `delivery_timeout_ms`.
        """
        lock, outstanding = threading.Lock(), len(records)

        def one(error: KafkaError | None) -> None:
            nonlocal outstanding
            with lock:
                if outstanding == 0:
                    return  # another one has failed before
                outstanding = outstanding - 1 if error is None else 0
                last = outstanding == 0
            if last:
                settle(error)

        for topic, key, value in records:
            future = self.producer.send(topic, key=key, value=value)
            future.add_callback(lambda _: one(None))
            future.add_errback(one)

    def fetch(self, positions: Mapping[Any, int], limit: int, seconds: float) -> dict[Any, list[Any]]:
        """What there is at `positions`, waiting up to `seconds` for it; all of it from the log of these ids.

        It waits longer, by up to the timeout, until every partition has answered: nothing heard is not nothing there.
        """
        with self._reading:
            if positions.keys() != self._positions.keys():
                self._consumer.assign(list(positions))
                self._positions, self._ends, self._answers = {}, {}, {}
                self._refresh()  # the leaders of the new partitions, so that the fetch below has somewhere to go
            for partition, position in positions.items():
                if self._positions.get(partition) != position:  # without a seek, what was prefetched is kept
                    self._consumer.seek(partition, position)
                    self._positions[partition] = position
            began = time.monotonic()
            give_up = began + seconds + self._timeout
            while True:
                batches = self._poll(positions, limit, seconds, began)
                # poll() reconnects silently: to whatever is at the address now, or for ever.
                self._refresh()
                if batches is not None:
                    break
                if time.monotonic() >= give_up:
                    raise KafkaTimeoutError(f"no broker has answered a fetch for {self._timeout:g} s")
                seconds = 0.0
            for partition, batch in batches.items():
                self._positions[partition] = batch[-1].offset + 1
            for partition in positions:
                if (end := self._consumer.highwater(partition)) is not None:
                    self._ends[partition] = end
                elif answer := self._answers.get(partition):  # which the consumer has not looked at: `limit`
                    self._ends[partition] = answer.end
            return batches

    def _poll(
        self, positions: Mapping[Any, int], limit: int, seconds: float, since: float
    ) -> dict[Any, list[Any]] | None:
        """What there is within `seconds`; None if not all partitions have answered what was asked after `since`."""
        until = time.monotonic() + seconds
        while True:
            wait = max(until - time.monotonic(), _FETCH_SECONDS / 2)
            batches: dict[Any, list[Any]] = self._consumer.poll(timeout_ms=int(wait * 1000), max_records=limit)
            late = time.monotonic() - until
            if batches or (late >= 0 and all(self._has_nothing(partition, since) for partition in positions)):
                return batches
            # Two fetches and more: one for older positions may be under way, and the next is the one that counts.
            if late >= 3 * _FETCH_SECONDS:
                return None

    def _has_nothing(self, partition: Any, since: float) -> bool:
        answer = self._answers.get(partition)
        return answer is not None and answer.nothing and answer.asked >= since

    def _listen(self, fetcher: Any) -> None:
        """Keep what partitions answer: poll() does not tell an answer that holds nothing from one that did not come."""
        handle = fetcher._handle_fetch_response

        def heard(node: Any, offsets: Any, asked: float, response: Any) -> None:
            for topic in response.responses:
                for told in topic.partitions:
                    partition = TopicPartition(topic.topic, told.partition_index)
                    diverged = told.diverging_epoch is not None and told.diverging_epoch.end_offset >= 0
                    if told.error_code == NoError.errno and not diverged:
                        self._answers[partition] = _Answer(asked, not told.records, told.high_watermark)
                    else:
                        self._answers.pop(partition, None)
            handle(node, offsets, asked, response)

        fetcher._handle_fetch_response = heard

    def end(self, partition: Any, position: int) -> int:
        """The end that the last fetch saw; behind `position` if it heard nothing; 0 if it did not ask."""
        return self._ends.get(partition, position + 1 if partition in self._positions else 0)

    def close(self) -> None:
        """End what other threads wait for here: a fetch at once, a send after `_CLOSE_SECONDS`."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=int(_CLOSE_SECONDS * 1000))
        if self.producer is not None:
            try:
                self.producer.close(timeout=_CLOSE_SECONDS)
            except KafkaTimeoutError:  # something cannot be sent, and then close() has closed nothing
                self.producer._sender.force_close()
                with contextlib.suppress(KafkaTimeoutError):
                    self.producer.close(timeout=_CLOSE_SECONDS)

    def _refresh(self) -> None:
        """Ask a broker for metadata now: somebody answers, and it is still the cluster that we know, and its topics.

        Only those topics are asked for that the consumer reads.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            done = threading.Event()
            # Not `cluster.request_update()`: that waits until 100 ms have passed since the update before.
            future = self._client._manager.call_soon(self._client.cluster.refresh_metadata)
            future.add_both(lambda _, done=done: done.set())
            if not done.wait(max(0.0, deadline - time.monotonic())):
                raise KafkaTimeoutError(f"no broker has answered for {self._timeout:g} s")
            if future.succeeded():
                break
            time.sleep(_RETRY_SECONDS)
        if self._client.cluster.cluster_id != self.cluster_id:
            raise KafkaError(f"cluster {self.cluster_id} has been replaced by {self._client.cluster.cluster_id}")
        for topic, known in self.topic_ids.items():
            if self._client.cluster.topic_id(topic) not in (None, known):
                raise KafkaError(f"topic {topic} has been deleted and made anew")

    def _make_missing(self, topics: Mapping[str, Mapping[str, object]], common: Mapping[str, object]) -> None:
        cluster = self._client.cluster
        cluster.set_topics(topics)
        self._refresh()
        missing = {topic: options for topic, options in topics.items() if cluster.partitions_for_topic(topic) is None}
        if not missing:
            return
        deadline = time.monotonic() + self._timeout
        admin, _ = _make(KafkaAdminClient, common)
        try:
            answer = admin.create_topics(missing, timeout_ms=int(self._timeout * 1000), raise_errors=False)
            for topic in answer["topics"]:
                error = for_code(topic["error_code"])
                if error not in (NoError, TopicAlreadyExistsError):  # another program may have been faster
                    raise error(f"topic {topic['name']}: {topic.get('error_message') or 'cannot be made'}")
            admin.wait_for_topics(list(missing), timeout_ms=int(self._timeout * 1000))
        finally:
            admin.close()
        while True:  # until this client knows them too: a log is told by the ids of all its topics
            self._refresh()
            if all(cluster.partitions_for_topic(topic) for topic in topics):
                return
            if time.monotonic() >= deadline:
                raise KafkaTimeoutError("not all topics are known after they were made")
            time.sleep(_RETRY_SECONDS)


def _make(kind: Callable[..., Any], common: Mapping[str, object], **options: object) -> tuple[Any, Any]:
    """A producer, consumer or admin of kafka-python, and the network client inside it."""
    clients = []

    def client(**configs: Any) -> Any:
        made = KafkaNetClient(**configs)
        # kafka-python does not hand on its own option of this name, and would make topics with the cluster's defaults.
        made.cluster.config["allow_auto_create_topics"] = False
        clients.append(made)
        return made

    try:
        return kind(kafka_client=client, **common, **options), clients[0]
    except BaseException:
        for made in clients:  # left open by a constructor that finds no broker: sockets, and a thread
            made.close()
        raise
