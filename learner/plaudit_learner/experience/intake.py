"""From the event log into the experience store: each record once, together with the position after it."""

from __future__ import annotations

import logging
import math

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from plaudit.events import DEAD_LETTERS, FEEDBACK, INTERACTIONS, POLICIES, Entry, EventLog, Record, from_beginning
from plaudit.releases import IMPORTED, Releases
from plaudit.v1.events_pb2 import DeadLetter, Feedback, Interaction, PolicyEvent
from plaudit.v1.feedback_pb2 import Thumb
from plaudit_learner.experience.store import Experience

log = logging.getLogger(__name__)

_BATCH = 1000
_MOST_OF_A_LETTER = 1 << 20


class Poison(Exception):
    """A record that cannot be used; the message says why."""


class Intake:
    """Tails interactions, feedback and policies. The store's positions are of one log, told by its identity."""

    def __init__(self, event_log: EventLog, store: Experience) -> None:
        self.releases = Releases()
        """Where each version stands, as far as the log was read."""
        self._log = event_log
        self._store = store
        self._identity = event_log.identity
        known = store.positions(self._identity)
        self._new_log = not known
        # Policies are folded anew at each start, from the beginning: there are few, and they are compacted.
        self._positions = {**from_beginning(event_log, INTERACTIONS, FEEDBACK), **known}
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
            poison = []
            following = dict(self._positions)
            with self._store.transaction():
                for entry in entries:
                    try:
                        self._take(entry)
                    except Poison as reason:
                        poison.append(_dead_letter(entry, str(reason)))
                    following[entry.topic, entry.partition] = entry.offset + 1
                if poison:
                    # Before the position is kept: a crash in between repeats a dead letter, and loses none.
                    self._log.append(poison)
                self._store.set_positions(self._identity, following)
            self._positions = following  # only now: what was rolled back is read again
            taken += len(entries)
            if not self.lag():
                break  # as far as that read saw; a steady stream of votes would else be read for ever
        self.read_policies()
        return taken

    def lag(self) -> int:
        """Records that are in the log and not in the store. Raises EventLogUnavailable."""
        return self._log.lag(self._positions)

    def _take(self, entry: Entry) -> None:
        if entry.topic == INTERACTIONS:
            self._store.add_interaction(_interaction(entry.value))
        else:
            self._store.add_feedback(_feedback(entry.value))

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


def _interaction(value: bytes) -> Interaction:
    try:
        record = Interaction.FromString(value)
    except DecodeError as error:
        raise Poison(f"not an Interaction: {error}") from None
    if record.schema_version != 1:
        raise Poison(f"schema_version is {record.schema_version}; this learner knows 1")
    if not record.response_id or not record.policy_version:
        raise Poison("response_id or policy_version is missing")
    if not record.prompt_token_ids or not record.reply_token_ids:
        raise Poison("prompt_token_ids or reply_token_ids is empty")
    if record.policy_version == IMPORTED:
        if record.behaviour_logprobs:
            raise Poison("an imported reply has behaviour_logprobs, which nobody can know")
    elif len(record.behaviour_logprobs) != len(record.reply_token_ids):
        raise Poison(
            f"{len(record.reply_token_ids)} reply_token_ids, but {len(record.behaviour_logprobs)} behaviour_logprobs"
        )
    if not all(math.isfinite(logprob) for logprob in record.behaviour_logprobs):
        raise Poison("a behaviour log-probability is not finite")
    return record


def _feedback(value: bytes) -> Feedback:
    try:
        record = Feedback.FromString(value)
    except DecodeError as error:
        raise Poison(f"not a Feedback: {error}") from None
    if record.schema_version != 1:
        raise Poison(f"schema_version is {record.schema_version}; this learner knows 1")
    if not record.response_id or not record.feedback_id or not record.aspect:
        raise Poison("response_id, feedback_id or aspect is missing")
    if record.WhichOneof("verdict") is None:
        raise Poison("verdict is missing")
    if record.HasField("thumb") and record.thumb not in (Thumb.THUMB_UP, Thumb.THUMB_DOWN):
        raise Poison(f"thumb is {record.thumb}, neither up nor down")
    return record


def _dead_letter(entry: Entry, reason: str) -> Record:
    log.error("dead letter: %s[%d] at %d: %s", entry.topic, entry.partition, entry.offset, reason)
    now = Timestamp()
    now.GetCurrentTime()
    letter = DeadLetter(
        schema_version=1,
        topic=entry.topic,
        partition=entry.partition,
        offset=entry.offset,
        key=entry.key,
        value=entry.value[:_MOST_OF_A_LETTER],  # with what surrounds it, it must still fit into a record
        reason=reason,
        time=now,
    )
    return Record(DEAD_LETTERS, entry.key, letter.SerializeToString())
