"""What a record of the event log must be, to be used: read, and checked as far as the store and training rely on it.

A record from the future would be the newest for as long as its clock ran ahead: what is right would leave the window
before it, and no vote would be later than its vote. So there is a bound, above what clocks differ by that are set by
NTP, or were until a machine slept, and so small that what gets through ranks wrongly for that long only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from plaudit.events import ERASURES, FEEDBACK, INTERACTIONS, Entry
from plaudit.releases import IMPORTED, number
from plaudit.v1.events_pb2 import Erasure, Feedback, Interaction
from plaudit.v1.feedback_pb2 import Thumb

R = TypeVar("R", Interaction, Feedback, Erasure)

_SCHEMA_VERSION = 1
_MOST_AHEAD = 600  # seconds; Kerberos, say, takes 300
_LATEST = 253_402_300_800  # seconds since 1970: the year 10000, where protobuf's timestamps end


class Poison(Exception):
    """A record that cannot be used; the message says why."""


def parse(entry: Entry, now: float, vocabulary: int | None = None) -> Interaction | Feedback | Erasure:
    """The record of an entry of the three topics that the store takes in.

    now: unix time in seconds; vocabulary: how many token ids the base model has. Raises Poison.
    """
    record = _PARSERS[entry.topic](entry.value, now)
    if vocabulary is not None and isinstance(record, Interaction):
        for field, ids in (("prompt", record.prompt_token_ids), ("reply", record.reply_token_ids)):
            if (largest := max(ids)) >= vocabulary:
                raise Poison(f"{field}_token_ids has {largest}; the base model has {vocabulary}: another model's reply")
    return record


def _interaction(value: bytes, now: float) -> Interaction:
    record = _read(Interaction, value, "response_id", "policy_version", "prompt_token_ids", "reply_token_ids")
    _check_time("started_at", record.started_at, now)
    _check_time("finished_at", record.finished_at, now)
    if not math.isfinite(record.sampling.temperature):
        raise Poison("sampling.temperature is not finite")
    if record.policy_version == IMPORTED:
        if record.behaviour_logprobs:
            raise Poison("an imported reply has behaviour_logprobs, which nobody can know")
        return record
    try:
        number(record.policy_version)
    except ValueError as error:
        raise Poison(f"policy_version: {error}") from None
    if len(record.behaviour_logprobs) != len(record.reply_token_ids):
        raise Poison(
            f"{len(record.reply_token_ids)} reply_token_ids, but {len(record.behaviour_logprobs)} behaviour_logprobs"
        )
    if not all(math.isfinite(logprob) for logprob in record.behaviour_logprobs):
        raise Poison("a behaviour log-probability is not finite")
    return record


def _feedback(value: bytes, now: float) -> Feedback:
    record = _read(Feedback, value, "response_id", "feedback_id", "aspect")
    _check_time("submitted_at", record.submitted_at, now)
    verdict = record.WhichOneof("verdict")
    if verdict is None:
        raise Poison("verdict is missing")
    if verdict == "thumb" and record.thumb not in (Thumb.THUMB_UP, Thumb.THUMB_DOWN):
        raise Poison(f"thumb is {record.thumb}, neither up nor down")
    if verdict == "rating" and not 1 <= record.rating <= 5:
        raise Poison(f"rating is {record.rating}, not 1 to 5")
    return record


def _erasure(value: bytes, now: float) -> Erasure:
    record = _read(Erasure, value, "user", "time")
    _check_time("time", record.time, now)
    return record


def _read(kind: type[R], value: bytes, *needed: str) -> R:
    """A message whose `needed` fields are there."""
    try:
        record = kind.FromString(value)
    except DecodeError as error:
        raise Poison(f"no {kind.__name__}: {error}") from None
    if record.schema_version != _SCHEMA_VERSION:
        raise Poison(f"schema_version is {record.schema_version}; this learner knows {_SCHEMA_VERSION}")
    present = {field.name for field, _ in record.ListFields()}
    if missing := [field for field in needed if field not in present]:
        raise Poison(f"{' and '.join(missing)} missing")
    return record


def _check_time(field: str, time: Timestamp, now: float) -> None:
    if not (0 <= time.seconds < _LATEST and 0 <= time.nanos < 1_000_000_000):
        raise Poison(f"{field} is no time between 1970 and 9999")
    if (ahead := time.seconds - now) > _MOST_AHEAD:
        raise Poison(
            f"{field} is {time.ToJsonString()}, {timedelta(seconds=round(ahead))} after this learner's clock; at most "
            f"{timedelta(seconds=_MOST_AHEAD)}: one of the clocks is wrong"
        )


_PARSERS: dict[str, Callable[[bytes, float], Interaction | Feedback | Erasure]] = {
    INTERACTIONS: _interaction,
    FEEDBACK: _feedback,
    ERASURES: _erasure,
}
