"""Following topics from their beginning for as long as one lives, also when another log takes the place of this one."""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.events import Entry, EventLog, from_beginning


class Tail:
    """Where somebody who reads everything in some topics has got to. For one thread at a time."""

    def __init__(self, log: EventLog, *topics: str) -> None:
        self._log = log
        self._topics = topics
        self._identity = ""  # of the log that the positions are in
        self._anew = False
        self._positions: dict[tuple[str, int], int] = {}

    @property
    def offset(self) -> int:
        """Of the topics' partitions the furthest offset that is not read yet; 0 before the first `read`."""
        return max(self._positions.values(), default=0)

    def read(self, timeout: float) -> tuple[bool, Sequence[Entry]]:
        """(anew, what was appended since the last call), waiting up to `timeout` seconds until there is something.

        anew: this is another log than at the last call, or the first call: what was read before is void.
        Raises EventLogUnavailable; the next call then goes on where this one began.
        """
        identity = self._log.identity
        if identity != self._identity:
            self._positions = from_beginning(self._log, *self._topics)
            self._identity, self._anew = identity, True
        entries = self._log.read(self._positions, timeout=timeout)
        for entry in entries:
            self._positions[entry.topic, entry.partition] = entry.offset + 1
        anew, self._anew = self._anew, False
        return anew, entries
