"""The event log in one SQLite file: what runs on one machine, and the server's outbox while Kafka is away.

Two connections: one appends, one reads. A reader that waits is woken at once by appends of this object, and sees those
of other processes by the write-ahead log's time and size; and, for those may be the same after two commits within a
tick of the clock, every other second by SQLite's `data_version`, which changes with every commit of another connection.
"""

from __future__ import annotations

import heapq
import itertools
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from plaudit.events import PROGRESS, Entry, EventLog, EventLogUnavailable, Positions, Record

_PARTITION = 0
_POLL_SECONDS = 0.25  # how late a waiting reader may see what another process appended
_THOROUGH_SECONDS = 2.0  # between two looks through SQLite, each of which takes 0.3 ms where caches are cold
_COMPACTED = frozenset({PROGRESS})  # written every few seconds; the other topics hold what people did, all of it
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE log (identity TEXT NOT NULL);
-- Apart from the entries, so that offsets go on where they were when entries are deleted.
CREATE TABLE topics (topic TEXT PRIMARY KEY, next_offset INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    offset INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    appended_at REAL NOT NULL,
    UNIQUE (topic, offset)
);
"""


class SqliteLog(EventLog):
    """The log in the file at `path`, made with its directory if it is not there.

    Every topic has one partition, 0. Any number of threads and processes of one machine may share the file; appending
    waits up to `busy_timeout` seconds for another's append. Raises EventLogUnavailable.
    """

    def __init__(self, path: Path, *, busy_timeout: float = 5.0) -> None:
        self._path = path
        self._ahead = f"{path}-wal"
        self._busy_timeout = busy_timeout
        self._closed = False
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._appended = threading.Condition()
        self._appends = 0
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
            try:
                self._identity = self._prepare()
                self._file = path.stat().st_ino
                self._reader = self._connect()
            except BaseException:
                self._writer.close()
                raise

    @property
    def identity(self) -> str:
        """A UUID made with the file."""
        return self._identity

    def append(self, records: Sequence[Record]) -> None:
        """Append all in one transaction, fsynced when it returns. Raises EventLogUnavailable; then none is there.

        Of the progress topic, what stood before under the same key is deleted: so it stays as small as it is.
        """
        if not records:
            return
        now = time.time()
        with self._transaction() as writer:
            offsets: dict[str, int] = {}
            for topic in {record.topic for record in records}:
                row = writer.execute("SELECT next_offset FROM topics WHERE topic = ?", (topic,)).fetchone()
                offsets[topic] = row[0] if row else 0
            writer.executemany(
                "DELETE FROM entries WHERE topic = ? AND key = ?",
                {(record.topic, record.key) for record in records if record.topic in _COMPACTED},
            )
            rows = []
            for record in records:
                rows.append((record.topic, offsets[record.topic], record.key, record.value, now))
                offsets[record.topic] += 1
            writer.executemany(
                "INSERT INTO entries (topic, offset, key, value, appended_at) VALUES (?, ?, ?, ?, ?)", rows
            )
            writer.executemany("REPLACE INTO topics (topic, next_offset) VALUES (?, ?)", offsets.items())
        with self._appended:
            self._appends += 1
            self._appended.notify_all()

    def delete_before(self, topic: str, offset: int) -> None:
        """Drop the entries of `topic` before `offset`, e.g. those that an outbox has drained.

        Offsets go on as if they were there; the file keeps its size, and the room is used again.
        Raises EventLogUnavailable.
        """
        with self._transaction() as writer:
            writer.execute("DELETE FROM entries WHERE topic = ? AND offset < ?", (topic, offset))

    def partitions(self, topic: str) -> Sequence[int]:
        """Always partition 0."""
        return (_PARTITION,)

    def read(self, positions: Positions, *, limit: int = 1000, timeout: float = 0.0) -> Sequence[Entry]:
        """As `EventLog.read`. The oldest of all topics are taken, so that no topic waits for another's backlog."""
        deadline = time.monotonic() + timeout
        while True:
            state = self._state()  # before reading: a commit in between is then seen as news
            entries = self._select(positions, limit)
            if entries or not self._wait_for_news(state, deadline):
                return entries

    def lag(self, positions: Positions) -> int:
        """How many entries lie at or after `positions` now. Raises EventLogUnavailable."""
        lag = 0
        with self._explained(), self._reading:
            self._check()
            for (topic, _), position in positions.items():
                # Offsets have no gaps (of the progress topic: few), so the ends tell the count.
                # Two questions: asked for both ends at once, SQLite reads the whole index between them.
                oldest, newest = self._reader.execute(
                    "SELECT (SELECT MIN(offset) FROM entries WHERE topic = :topic),"
                    " (SELECT MAX(offset) FROM entries WHERE topic = :topic)",
                    {"topic": topic},
                ).fetchone()
                if oldest is not None:
                    lag += max(0, newest + 1 - max(position, oldest))
        return lag

    def close(self) -> None:
        """Close the file. A thread that waits in `read` is told by EventLogUnavailable."""
        with self._appended:
            self._closed = True
            self._appended.notify_all()
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def _select(self, positions: Positions, limit: int) -> list[Entry]:
        with self._explained(), self._reading:
            self._check()
            cursors = [
                self._reader.execute(
                    "SELECT sequence, topic, offset, key, value, appended_at FROM entries"
                    " WHERE topic = ? AND offset >= ? ORDER BY offset LIMIT ?",
                    (topic, position, limit),
                )
                for (topic, partition), position in positions.items()
                if partition == _PARTITION
            ]
            try:
                rows = list(itertools.islice(heapq.merge(*cursors), limit))
            finally:
                for cursor in cursors:  # a cursor left open pins the write-ahead log
                    cursor.close()
        rows.sort(key=lambda row: row[1])  # stable: within a topic the order stays
        return [Entry(topic, _PARTITION, *rest) for _, topic, *rest in rows]

    def _wait_for_news(self, state: tuple[int, int], deadline: float) -> bool:
        """Whether something was committed since `state`, waiting for it until `deadline`."""
        while (now := time.monotonic()) < deadline:
            stamp = self._stamp()
            if self._state() != state:
                return True
            thorough = min(deadline, now + _THOROUGH_SECONDS)
            with self._appended:
                while not self._closed and self._appends == state[0] and self._stamp() == stamp:
                    if (remaining := thorough - time.monotonic()) <= 0:
                        break
                    self._appended.wait(min(_POLL_SECONDS, remaining))
        return False

    def _state(self) -> tuple[int, int]:
        """Changes with every append: the first number for those of this object, the second for everybody's."""
        with self._explained(), self._reading:
            self._check()
            return self._appends, self._reader.execute("PRAGMA data_version").fetchone()[0]

    def _stamp(self) -> tuple[int, int] | None:
        """Of the write-ahead log; None if there is none to be seen."""
        try:
            status = os.stat(self._ahead)  # four times a second: no Path is made for it
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def _connect(self) -> sqlite3.Connection:
        # isolation_level=None: transactions are ours to begin. Threads take turns by our locks.
        connection = sqlite3.connect(
            self._path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")  # in WAL mode: fsync at every commit
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self) -> str:
        """Make the file ours if it is new; returns its identity."""
        deadline = time.monotonic() + self._busy_timeout
        while True:  # SQLite does not wait for its busy timeout when two processes switch to WAL together
            try:
                self._writer.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
        with self._transaction(created=False) as writer:
            (version,) = writer.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";\n"):  # executescript would commit first
                    writer.execute(statement)
                writer.execute("INSERT INTO log VALUES (?)", (str(uuid.uuid4()),))
                writer.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            elif version != _SCHEMA_VERSION:
                raise EventLogUnavailable(
                    f"event log {self._path}: schema {version}; this Plaudit reads {_SCHEMA_VERSION}"
                )
            identity: str = writer.execute("SELECT identity FROM log").fetchone()[0]
            return identity

    @contextmanager
    def _transaction(self, *, created: bool = True) -> Iterator[sqlite3.Connection]:
        with self._explained(), self._writing:
            if created:
                self._check()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # a full disk has ended it already
                    self._writer.execute("ROLLBACK")
                raise

    def _check(self) -> None:
        if self._closed:
            raise EventLogUnavailable(f"event log {self._path}: closed")
        # Else it would be acknowledged into a file that is gone as soon as this process ends.
        if self._path.stat().st_ino != self._file:
            raise EventLogUnavailable(f"event log {self._path}: another file is there now; restart")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise EventLogUnavailable(f"event log {self._path}: {error}") from error
