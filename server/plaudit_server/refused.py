"""Records that the event log will never take: too large for its topic, against its policy, …

They must not keep the rest of the outbox waiting, and are not lost: each is kept whole in a file of its own beside the
outbox (`refused.sqlite`, an event log), and a dead letter says why.
"""

from __future__ import annotations

import logging
from pathlib import Path

from plaudit import dead_letters
from plaudit.events import EventLog, Record, RecordRefused
from plaudit.events.sqlite import SqliteLog
from plaudit_server.metrics import ServerMetrics

log = logging.getLogger(__name__)


class Refused:
    """Appends to the event log what it takes, and puts the rest aside."""

    def __init__(self, event_log: EventLog, path: Path, metrics: ServerMetrics) -> None:
        self._log = event_log
        self._path = path
        self._metrics = metrics
        self._aside: SqliteLog | None = None  # the file is made when it is needed, which is next to never
        self._kept: set[int] = set()  # what was put aside; without its letter it comes again, every second

    def append(self, record: Record) -> None:
        """Append one record, or put it aside. Raises EventLogUnavailable if neither can be done now."""
        try:
            self._log.append([record])
        except RecordRefused as reason:
            log.error("record %r for %s goes to dead letters: %s", record.key, record.topic, reason)
            entry = dead_letters.nowhere(record)
            if entry.offset not in self._kept:
                self._aside = self._aside or SqliteLog(self._path)
                self._aside.append([record])
                self._kept.add(entry.offset)
            told = f"refused by the event log, and kept whole in the server's {self._path.name}: {reason}"
            dead_letters.put(self._log, [(entry, told)])
            self._metrics.outbox_refused.inc()

    def close(self) -> None:
        """Close the file."""
        if self._aside is not None:
            self._aside.close()
