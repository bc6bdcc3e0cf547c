"""What the store remembers of the event log: how far it was read, which versions it told of, and what is being said.

In one file with what was read, so that a record and the position after it are kept both or neither (invariant 9).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from plaudit.v1.events_pb2 import PolicyEvent

SCHEMA = """
CREATE TABLE IF NOT EXISTS positions (
    log TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (log, topic, partition)
) STRICT;
CREATE TABLE IF NOT EXISTS policies (version TEXT PRIMARY KEY, offset INTEGER NOT NULL, event BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS announcing (
    place INTEGER PRIMARY KEY, log TEXT NOT NULL, since INTEGER NOT NULL, event BLOB NOT NULL
) STRICT;
"""


class Heard:
    """Works within the transactions of the store whose connection it is given. A log is told by its identity."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def positions(self, log: str) -> dict[tuple[str, int], int]:
        """(topic, partition) → offset of the next record to be read."""
        rows = self._db.execute("SELECT topic, partition, next FROM positions WHERE log = ?", (log,))
        return {(topic, partition): following for topic, partition, following in rows}

    def set_positions(self, log: str, positions: Mapping[tuple[str, int], int]) -> None:
        """Say how far the log was read; belongs into the transaction that keeps what was read."""
        self._db.executemany(
            "INSERT INTO positions VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET next = excluded.next",
            [(log, topic, partition, following) for (topic, partition), following in positions.items()],
        )

    def rename_log(self, former: str, log: str) -> None:
        """Positions in `former` are positions in `log`, where there are none yet; then there are none in `former`."""
        if former != log:
            self._db.execute("UPDATE OR IGNORE positions SET log = ? WHERE log = ?", (log, former))
            self._db.execute("DELETE FROM positions WHERE log = ?", (former,))

    def keep_policy(self, event: PolicyEvent, offset: int) -> None:
        """Remember the last event of a version, for the day on which the event log has forgotten it."""
        self._db.execute(
            "INSERT INTO policies VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
            " SET offset = excluded.offset, event = excluded.event",
            (event.version, offset, event.SerializeToString()),
        )

    def policies(self) -> list[PolicyEvent]:
        """The events remembered, in the order of the log that they were read from."""
        rows = self._db.execute("SELECT event FROM policies ORDER BY offset")
        return [PolicyEvent.FromString(event) for (event,) in rows]

    def announce(self, log: str, since: int, events: Sequence[bytes]) -> None:
        """Keep what is about to be appended to the policy topic of that log, which was read up to `since`.

        Belongs into a transaction: it takes the place of what was kept before.
        """
        self.announced()
        self._db.executemany(
            "INSERT INTO announcing (log, since, event) VALUES (?, ?, ?)", [(log, since, event) for event in events]
        )

    def announced(self) -> None:
        """It is done, or will not be: `announcing` is empty from now on."""
        self._db.execute("DELETE FROM announcing")

    def announcing(self, log: str) -> tuple[int, list[bytes]]:
        """(since, events) as `announce` was told; (0, []) if nothing was, or it was of another log."""
        rows = self._db.execute("SELECT since, event FROM announcing WHERE log = ? ORDER BY place", (log,)).fetchall()
        return (rows[0][0], [event for _, event in rows]) if rows else (0, [])
