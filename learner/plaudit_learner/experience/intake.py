"""From the event log into the experience store: each record once, together with the position after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from plaudit import dead_letters
from plaudit.events import (
    DEAD_LETTERS,
    ERASURES,
    FEEDBACK,
    INTERACTIONS,
    Entry,
    EventLog,
    from_beginning,
)
from plaudit.releases import Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit_learner.experience.on_trial import on_trial
from plaudit_learner.experience.policies import Policies
from plaudit_learner.experience.records import Poison, parse
from plaudit_learner.experience.store import Experience

log = logging.getLogger(__name__)

_BATCH = 1000


class Intake:
    """Tails all topics but dead letters. The store's positions are of one log, told by its identity."""

    def __init__(
        self,
        event_log: EventLog,
        store: Experience,
        put_aside: Callable[[str], object] = lambda topic: None,
        *,
        vocabulary: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """put_aside: called with the topic of each record for which a dead letter was written; clock: unix time.

        vocabulary: how many token ids the base model has; None: whatever they are.
        """
        self._log = event_log
        self._store = store
        self._put_aside = put_aside
        self._vocabulary = vocabulary
        self._clock = clock
        self._letters: set[dead_letters.Name] = set()
        self._letters_read: dict[tuple[str, int], int] | None = None
        self._identity = event_log.identity
        # The identity of a log on Kafka had no `#` and topics' ids until 2026-11-27 (docs/decisions/0002).
        store.heard.rename_log(self._identity.partition("#")[0], self._identity)
        known = store.heard.positions(self._identity)
        self._new_log = not known
        self._positions = from_beginning(event_log, INTERACTIONS, FEEDBACK, ERASURES) | known
        self._policies = Policies(event_log, store)

    @property
    def releases(self) -> Releases:
        """Where each version stands, as far as the log was read."""
        return self._policies.releases

    def start(self) -> None:
        """Read the policies; a new log is told those that the store remembers. Raises EventLogUnavailable."""
        self._policies.start(new=self._new_log)
        if self._new_log:
            with self._store.transaction():  # only now: a log with positions has been told them
                self._store.heard.set_positions(self._identity, self._positions)
            self._new_log = False

    def announce(self, event: PolicyEvent) -> None:
        """Say what was decided by what was taken in so far: see `Policies.announce`. Raises EventLogUnavailable."""
        self._policies.announce(event)

    def drain(self, timeout: float) -> int:
        """Take in all that is there, waiting up to `timeout` seconds for the first record; returns how many records.

        Raises EventLogUnavailable.
        """
        taken = 0
        while True:
            entries = self._log.read(self._positions, limit=_BATCH, timeout=0.0 if taken else timeout)
            # After that and before anything leaves the store: who answers on trial has heard of the trial, so whatever
            # reply was read, the event that keeps it stands in the log by now.
            self.read_policies()
            if not entries:
                break
            poison: list[tuple[Entry, str]] = []
            following = dict(self._positions)
            with self._store.transaction():
                for entry in entries:
                    try:
                        self._store.add(parse(entry, self._clock(), self._vocabulary))
                    except Poison as reason:
                        poison.append((entry, str(reason)))
                    following[entry.topic, entry.partition] = entry.offset + 1
                if poison:
                    # Before the position is kept: a crash in between loses no dead letter.
                    self._write_letters(poison)
                self._store.retain(on_trial(self.releases))
                self._store.heard.set_positions(self._identity, following)
            self._positions = following  # only now: what was rolled back is read again
            self._store.shrink()
            taken += len(entries)
            if not self.lag():
                break  # as far as that read saw; a steady stream of votes would else be read for ever
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

    def read_policies(self) -> None:
        """Hear what was announced since. Raises EventLogUnavailable."""
        self._policies.read()
