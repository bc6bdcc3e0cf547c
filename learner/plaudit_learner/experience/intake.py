"""From the event log into the experience store: each record once, together with the position after it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from plaudit import dead_letters
from plaudit.events import (
    DEAD_LETTERS,
    ERASURES,
    FEEDBACK,
    INTERACTIONS,
    POLICIES,
    Entry,
    EventLog,
    Record,
    from_beginning,
)
from plaudit.releases import Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit_learner.experience.on_trial import on_trial
from plaudit_learner.experience.records import Poison, parse
from plaudit_learner.experience.store import Experience

log = logging.getLogger(__name__)

_BATCH = 1000


class Intake:
    """Tails all topics but dead letters. The store's positions are of one log, told by its identity."""

    def __init__(
        self, event_log: EventLog, store: Experience, put_aside: Callable[[str], object] = lambda topic: None
    ) -> None:
        """put_aside: called with the topic of each record for which a dead letter was written."""
        self.releases = Releases()
        """Where each version stands, as far as the log was read."""
        self._log = event_log
        self._store = store
        self._put_aside = put_aside
        self._letters: set[dead_letters.Name] = set()
        self._letters_read: dict[tuple[str, int], int] | None = None
        self._identity = event_log.identity
        # The identity of a log on Kafka had no `#` and topics' ids until 2026-11-27 (docs/decisions/0002).
        store.rename_log(self._identity.partition("#")[0], self._identity)
        known = store.positions(self._identity)
        self._new_log = not known
        # Policies are folded anew at each start, from the beginning: there are few, and they are compacted.
        self._positions = from_beginning(event_log, INTERACTIONS, FEEDBACK, ERASURES) | known
        self._policies = from_beginning(event_log, POLICIES)

    def start(self) -> None:
        """Read the policies; if this is a log that knows none, tell it those that the store remembers.

        A broker that keeps its log in memory forgets it when it restarts; the versions are still in the policy store.
        Raises EventLogUnavailable.
        """
        self.read_policies()
        remembered = self._store.policies()
        if self._new_log and remembered and self.releases.versions() == ["v0"]:
            log.warning("a new event log: announcing %d versions again", len(remembered))
            self._log.append([Record(POLICIES, event.version, event.SerializeToString()) for event in remembered])
            self.read_policies()

    def drain(self, timeout: float) -> int:
        """Take in all that is there, waiting up to `timeout` seconds for the first record; returns how many records.

        Raises EventLogUnavailable.
        """
        taken = 0
        while entries := self._log.read(self._positions, limit=_BATCH, timeout=0.0 if taken else timeout):
            poison: list[tuple[Entry, str]] = []
            following = dict(self._positions)
            with self._store.transaction():
                for entry in entries:
                    try:
                        self._store.add(parse(entry))
                    except Poison as reason:
                        poison.append((entry, str(reason)))
                    following[entry.topic, entry.partition] = entry.offset + 1
                if poison:
                    # Before the position is kept: a crash in between loses no dead letter.
                    self._write_letters(poison)
                self._store.retain(on_trial(self.releases))
                self._store.set_positions(self._identity, following)
            self._positions = following  # only now: what was rolled back is read again
            self._store.shrink()
            taken += len(entries)
            if not self.lag():
                break  # as far as that read saw; a steady stream of votes would else be read for ever
        self.read_policies()
        return taken

    def lag(self) -> int:
        """Records that are in the log and not in the store. Raises EventLogUnavailable."""
        return self._log.lag(self._positions)

    def _write_letters(self, poison: list[tuple[Entry, str]]) -> None:
        """Write the dead letters that are not there yet: a crash, or a full disk, may bring the same records again."""
        if self._letters_read is None:
            self._letters_read = from_beginning(self._log, DEAD_LETTERS)
        self._letters.update(map(dead_letters.name, dead_letters.read(self._log, self._letters_read)))
        new = [
            (entry, reason)
            for entry, reason in poison
            if dead_letters.Name(entry.topic, entry.partition, entry.offset) not in self._letters
        ]
        dead_letters.put(self._log, new)
        for entry, reason in new:
            log.error("dead letter: %s[%d] at %d: %s", entry.topic, entry.partition, entry.offset, reason)
            self._put_aside(entry.topic)

    def read_policies(self) -> list[PolicyEvent]:
        """Fold what was announced since; returns it. Raises EventLogUnavailable."""
        heard = []
        while entries := self._log.read(self._policies, limit=_BATCH):
            for entry in entries:
                self._policies[entry.topic, entry.partition] = entry.offset + 1
                try:
                    event = self.releases.read(entry.value, entry.offset)
                except ValueError as error:
                    log.error("policy event at offset %d passed over: %s", entry.offset, error)
                    continue
                self._store.keep_policy(event, entry.offset)
                heard.append(event)
        return heard
