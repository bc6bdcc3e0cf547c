"""The policy topic as the learner hears it, and speaks on it: what an operator says always holds.

    decided by what was heard ─▶ kept in the store ─▶ appended, heard ─▶ an operator's words of meanwhile, once more

What the learner announces follows from what it had heard by then. An operator who says something after that and before
the event would be undone by it, whatever version it is of; so his words are appended again behind it, in the order in
which he said them: as if the event stood where the learner had heard to. Until that is done the store keeps event and
place. A learner that was killed meanwhile, or told that the log has not taken what it has taken, does it when it comes
back; if the log has not taken it, the learner decides anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence

from plaudit.events import POLICIES, Entry, EventLog, EventLogUnavailable, Record, from_beginning
from plaudit.releases import Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit_learner.experience.store import Experience

log = logging.getLogger(__name__)

_BATCH = 1000
_HEARD_SECONDS = 10.0  # what was acknowledged can be read at once


class Policies:
    """Part of intake, of one log. Policies are folded anew at each start: they are few, and the topic is compacted."""

    def __init__(self, event_log: EventLog, store: Experience) -> None:
        self.releases = Releases()
        """Where each version stands, as far as the topic was read."""
        self._log = event_log
        self._store = store
        self._identity = event_log.identity
        self._positions = from_beginning(event_log, POLICIES)

    def start(self, *, new: bool) -> None:
        """Read the topic, and end an announcement that was cut off.

        new: the learner has not worked with this log yet, which is told those versions that the store remembers and
        that it lacks. A broker that keeps its log in memory forgets it when it restarts; the versions are still in the
        policy store. Raises EventLogUnavailable; a new log is new until this has returned.
        """
        remembered = {event.version: event for event in self._store.heard.policies()}
        said = self.read(keep=False)
        since, values = self._store.heard.announcing(self._identity)
        if new and not values:
            lacking = [event for version, event in remembered.items() if self.releases.event(version) is None]
            if lacking:
                log.warning("a new event log: announcing %d versions again", len(lacking))
            values = [event.SerializeToString() for event in lacking]
            # What was heard in another log, of which this is a copy, was not said meanwhile; nor what stands before it.
            since = max((e.offset + 1 for e in said if _event(e) == remembered.get(_event(e).version)), default=0)
            self._decide(since, values)
        for entry in said:  # only now: whoever is killed before has heard nothing in this log
            self._store.heard.keep_policy(_event(entry), entry.offset)
        said = [entry for entry in said if entry.offset >= since]
        if values and (new or _heard(values, said)):
            self._announce(values, said)
        else:
            self._store.heard.announced()  # decided anew, if there is anything to decide

    def announce(self, event: PolicyEvent) -> None:
        """Append what was decided by what was heard so far; what an operator has said since stands behind it.

        Raises EventLogUnavailable; whether it stands then, is for the next `start` to see.
        """
        values = [event.SerializeToString()]
        self._decide(max(self._positions.values()), values)
        self._announce(values, [])

    def read(self, *, keep: bool = True) -> list[Entry]:
        """Hear what was announced since; returns it, without what is no event. Raises EventLogUnavailable.

        keep: the store remembers it.
        """
        heard = []
        while entries := self._log.read(self._positions, limit=_BATCH):
            for entry in entries:
                self._positions[entry.topic, entry.partition] = entry.offset + 1
                try:
                    event = self.releases.read(entry.value, entry.offset)
                except ValueError as error:
                    log.error("policy event at offset %d passed over: %s", entry.offset, error)
                    continue
                if keep:
                    self._store.heard.keep_policy(event, entry.offset)
                heard.append(entry)
        return heard

    def _decide(self, since: int, values: Sequence[bytes]) -> None:
        """Keep what will be said, and that the topic was heard up to `since`."""
        with self._store.transaction():
            self._store.heard.announce(self._identity, since, values)

    def _announce(self, values: Sequence[bytes], said: list[Entry]) -> None:
        """said: what was read since they were decided; it grows by what is read here."""
        if lacking := [value for value in values if not _heard([value], said)]:
            self._say(lacking, said)
        while words := _overtaken(values, said):
            events = map(PolicyEvent.FromString, words)
            log.warning("what an operator said meanwhile holds: %s", "; ".join(event.reason for event in events))
            self._say(words, said)
        self._store.heard.announced()

    def _say(self, values: Sequence[bytes], said: list[Entry]) -> None:
        records = [Record(POLICIES, PolicyEvent.FromString(value).version, value) for value in values]
        self._log.append(records)
        heard: list[Entry] = []
        deadline = time.monotonic() + _HEARD_SECONDS
        while not _heard(values, heard):
            if time.monotonic() > deadline:
                raise EventLogUnavailable(f"{POLICIES}: what was appended cannot be read")
            heard += self.read()
        said += heard


def _heard(values: Collection[bytes], said: Sequence[Entry]) -> bool:
    """Whether all were said. Bytes, not messages: one with a figure that is NaN does not equal itself."""
    return set(values) <= {entry.value for entry in said}


def _overtaken(values: Collection[bytes], said: Sequence[Entry]) -> list[bytes]:
    """The operator's words that have to be said again, so that all of his stand behind these, in his order."""
    words = dict.fromkeys(entry.value for entry in said if entry.value not in values and _by_hand(entry))
    first_to_last = list(words)
    standing: dict[bytes, None] = {}  # in the order in which they were last said
    for entry in said:
        if entry.value in values:
            standing.clear()
        elif entry.value in words:
            standing.pop(entry.value, None)
            standing[entry.value] = None
    return [] if list(standing) == first_to_last else first_to_last


def _by_hand(entry: Entry) -> bool:
    return _event(entry).actor == "operator"


def _event(entry: Entry) -> PolicyEvent:
    return PolicyEvent.FromString(entry.value)
