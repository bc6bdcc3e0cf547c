"""The replies that votes on a canary are to decide by: both the store, which keeps them, and the judge ask here."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from plaudit.releases import Releases
from plaudit.v1.sampling_pb2 import FinishReason
from plaudit_learner.experience import slots


@dataclass(frozen=True, slots=True)
class OnTrial:
    """Of these versions, drawn, not asked for by name, and begun at `since` or later."""

    canary: str
    stable: str
    since: int
    """The time of the canary's event, Unix µs: with another share the comparison is another, and begins anew."""


def on_trial(releases: Releases) -> OnTrial | None:
    """What is on trial; None if nothing is. At a share of 0 a canary waits for an operator, and nobody waits for it."""
    canary = releases.canary
    event = releases.event(canary) if canary is not None else None
    if canary is None or event is None or not releases.share(canary):
        return None
    return OnTrial(canary, releases.stable, event.time.ToMicroseconds())


@dataclass(frozen=True, slots=True)
class Exposure:
    """One reply that the router drew a version for: nobody asked for that version by name."""

    response_id: str
    at: int
    """When its request was admitted; Unix time in microseconds."""
    seconds: float
    """From then to its last token; 0: not known."""
    tokens: int
    failed: bool
    """Whether the engine failed in the middle of it."""
    user: str = ""
    """Whom it was given to; empty: not known."""
    conversation: str = ""
    """The same for all replies of a conversation; empty: not known."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One vote that stands on such a reply."""

    response_id: str
    asker: str
    """Whom the reply was given to; empty: not known."""
    user: str
    """Who it is said to be of. Only the asker may vote on what was given to one; else the name proves nothing."""
    score: float
    """0 or 1; of a rating of 1 to 5: 0, 1/4, … 1."""
    at: int
    """When it was cast; Unix time in microseconds."""


def exposures(db: sqlite3.Connection, version: str, since: int, most: int) -> list[Exposure]:
    """As `Experience.exposures`."""
    rows = db.execute(
        "SELECT response_id, at, finished_at, length(reply) / 4, finish_reason, user, conversation"
        " FROM interactions WHERE policy_version = ? AND NOT pinned AND at >= ? ORDER BY at, response_id LIMIT ?",
        (version, since, most),
    )
    return [
        Exposure(name, at, (end - at) / 1e6 if end else 0.0, tokens, reason == FinishReason.FINISH_REASON_ERROR, *drawn)
        for name, at, end, tokens, reason, *drawn in rows
    ]


def ballots(db: sqlite3.Connection, aspect: str, versions: Sequence[str], since: int) -> list[Ballot]:
    """As `Experience.ballots`."""
    rows = db.execute(
        "SELECT s.response_id, i.user, s.user, s.value, s.at"
        " FROM standing AS s JOIN interactions AS i USING (response_id)"
        " WHERE s.slot = 'vote' AND s.aspect = ? AND i.at >= ? AND NOT i.pinned"
        " AND i.policy_version IN (SELECT value FROM json_each(?)) ORDER BY s.at, s.response_id, s.user",
        (aspect, since, json.dumps(versions)),
    )
    return [Ballot(name, asker, user, slots.score(value), at) for name, asker, user, value, at in rows]
