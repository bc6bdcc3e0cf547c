"""Records that their reader could not use: kept on a topic of their own, for a person to look at and to replay.

    topic ──▶ intake ──▶ dead letter ──(after a fix: `plaudit dead-letters replay`)──▶ its topic again ──▶ intake
                             ▲                                                            │
                             └── the same letter with `replayed_at`: it was replayed ◀────┘

A letter is named by where its record stood, so that a record which is met again after a crash makes no second one. A
record that is replayed and still cannot be used stands at a new place, and makes a letter of its own. One that the
event log never took stood nowhere: it is named by chance.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from plaudit.events import (
    DEAD_LETTERS,
    ERASURES,
    FEEDBACK,
    INTERACTIONS,
    MAX_KEY_BYTES,
    Entry,
    EventLog,
    Record,
    RecordRefused,
    from_beginning,
)
from plaudit.v1.events_pb2 import DeadLetter

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 20  # of the value: with what surrounds it, a letter must still fit into a record
_NOWHERE = 2**32 - 1  # see DeadLetter.partition
_BATCH = 16  # letters are up to a MiB each
_PREFIX = "plaudit."
# Whose records are keyed, so that appending one again changes nothing. A policy event is a step; steps have an order.
_REPLAYABLE = (INTERACTIONS, FEEDBACK, ERASURES)


class Name(NamedTuple):
    """Where the record of a letter stood: what tells letters apart."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic.removeprefix(_PREFIX)}/{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Name:
        """`interactions/0/17` → its name. Raises ValueError, which says how names look."""
        topic, *numbers = text.removeprefix(_PREFIX).split("/")
        if not topic or len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
            raise ValueError(f"{text!r} names no dead letter; names are TOPIC/PARTITION/OFFSET, as `list` shows them")
        return cls(_PREFIX + topic, int(numbers[0]), int(numbers[1]))


def name(letter: DeadLetter) -> Name:
    """What a letter, or the word that it was replayed, is about."""
    return Name(letter.topic, letter.partition, letter.offset)


def nowhere(record: Record) -> Entry:
    """A record that the event log never took, as if it stood in it, at a place where no other ever stands.

    The place follows from what it holds: the same record, refused again, makes no letter of another name.
    """
    digest = hashlib.sha256(b"\0".join([record.topic.encode(), record.key.encode(), record.value])).digest()
    return Entry(record.topic, _NOWHERE, int.from_bytes(digest[:8]) >> 1, record.key, record.value, time.time())


def put(event_log: EventLog, poison: Sequence[tuple[Entry, str]]) -> None:
    """Append a letter for each record that cannot be used, and why; without its value, if the log refuses it with it.

    Raises EventLogUnavailable.
    """
    try:
        event_log.append([write(entry, reason) for entry, reason in poison])
    except RecordRefused:
        for entry, reason in poison:  # those that were taken are there twice, under one name
            try:
                event_log.append([write(entry, reason)])
            except RecordRefused:
                event_log.append([write(entry, reason, most_bytes=0)])


def write(entry: Entry, reason: str, *, most_bytes: int = _MOST_BYTES) -> Record:
    """The letter for a record that cannot be used, and why; with the first `most_bytes` of its value.

    And with as much of its key as a record of ours may have: whoever else writes to the topic may give a longer one.
    """
    key = entry.key.encode()[:MAX_KEY_BYTES].decode(errors="ignore")  # a character cut in two is left out
    letter = DeadLetter(
        schema_version=1,
        topic=entry.topic,
        partition=entry.partition,
        offset=entry.offset,
        key=key,
        value=entry.value[:most_bytes],
        value_bytes=len(entry.value),
        reason=reason,
        time=_now(),
    )
    return Record(DEAD_LETTERS, key, letter.SerializeToString())


def read(event_log: EventLog, positions: dict[tuple[str, int], int] | None = None) -> Iterator[DeadLetter]:
    """All letters, and the words that they were replayed, in the order of the log; `positions` are moved behind them.

    Raises EventLogUnavailable.
    """
    if positions is None:
        positions = from_beginning(event_log, DEAD_LETTERS)
    while entries := event_log.read(positions, limit=_BATCH):
        for entry in entries:
            positions[entry.topic, entry.partition] = entry.offset + 1
            try:
                yield DeadLetter.FromString(entry.value)
            except DecodeError:
                log.error("%s[%d] at %d is no dead letter; passed over", entry.topic, entry.partition, entry.offset)


def refusal(letter: DeadLetter) -> str | None:
    """Why a letter cannot be replayed, in words; None if it can."""
    if letter.topic not in _REPLAYABLE:
        return f"records of {letter.topic} are steps in an order, and are not replayed"
    if letter.value_bytes > len(letter.value):
        return f"its value had {letter.value_bytes:,} bytes, of which only the first {len(letter.value):,} were kept"
    return None


def replay(event_log: EventLog, letter: DeadLetter) -> None:
    """Append what the letter holds to its topic again, and then the word that this was done.

    Cut off in between and done again, it appends twice, which changes nothing for readers of these topics.
    Raises ValueError if it cannot be replayed, EventLogUnavailable.
    """
    if reason := refusal(letter):
        raise ValueError(f"{name(letter)} cannot be replayed: {reason}")
    event_log.append([Record(letter.topic, letter.key, letter.value)])
    word = DeadLetter(
        schema_version=1,
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        key=letter.key,
        replayed_at=_now(),
    )
    event_log.append([Record(DEAD_LETTERS, letter.key, word.SerializeToString())])


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
