"""The bound of the experience store: it keeps the training window, and what waits for it, and no more.

    interactions ─┬─ the last `window` sampled here, and the last `window` imported ──┐
                  └─ the first `most_on_trial` that a canary is judged by ────────────┤
    statements   ─┬─ those about these replies, at most _MOST_PER_REPLY each ─────────┴─▶ kept
                  └─ those whose reply is not here: the last `waiting`
    the rest     ──▶ deleted; what stood on it stays in the tallies

A reply leaves for good: it is not taken in again, and a vote that comes for it later waits in vain. What stood on it
when it left is added to the tallies of its version, so that they do not fall, and cannot be counted twice.

What a canary is judged by stays until its trial is over, and then leaves as the rest does. The judge weighs the whole
trial at each look, and its test allows for any number of looks at votes that become more (`canary/betting.py`), not at
a window that slides over them; and a trial of which only a window is seen may never come to its end.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from plaudit.releases import IMPORTED
from plaudit.v1.events_pb2 import Interaction
from plaudit_learner.experience.on_trial import OnTrial

SCHEMA = """
CREATE TABLE IF NOT EXISTS tallied (
    policy_version TEXT NOT NULL, aspect TEXT NOT NULL,
    up INTEGER NOT NULL, down INTEGER NOT NULL, judgements INTEGER NOT NULL,
    PRIMARY KEY (policy_version, aspect)
) STRICT;
CREATE TABLE IF NOT EXISTS departed (
    imported INTEGER PRIMARY KEY, at INTEGER NOT NULL, response_id TEXT NOT NULL
) STRICT;
"""

WAITING = 200_000  # about 40 MB; the vote of a reply that never comes is an outbox lost, or a reply that has left
_MOST_ON_TRIAL = 100_000  # about 420 MB, at shares below 0.01 only: a trial ends at canary_most_replies / share replies
_MOST_PER_REPLY = 100  # the first ones stand: together they weigh one vote, and each is a row of the fit
_FREE_PAGES = 1024  # 4 MiB: what is deleted makes room for what comes, so the file shrinks only after more than that


def most_on_trial(window: int) -> int:
    """Replies on trial that are kept, of both versions together: by then the trial has to end."""
    return max(_MOST_ON_TRIAL, window)


class Retention:
    """Works within the transactions of the store whose connection it is given."""

    def __init__(self, db: sqlite3.Connection, window: int, waiting: int = WAITING) -> None:
        """window: replies of each kind; waiting: statements whose reply is not here."""
        self._db = db
        self._window = window
        self._waiting = waiting

    def admit_interaction(self, record: Interaction) -> bool:
        """Whether a reply is newer than all of its kind that have left."""
        query = "SELECT 1 FROM departed WHERE imported = ? AND (at, response_id) >= (?, ?)"
        place = (record.policy_version == IMPORTED, record.started_at.ToMicroseconds(), record.response_id)
        return self._db.execute(query, place).fetchone() is None

    def bound_reply(self, response_id: str) -> None:
        """Keep the first statements about a reply, by their times: so it does not matter in which order they came."""
        self._db.execute(
            "DELETE FROM statements WHERE rowid IN (SELECT rowid FROM statements WHERE response_id = ?"
            " ORDER BY at, feedback_id, user, aspect LIMIT -1 OFFSET ?)",
            (response_id, _MOST_PER_REPLY),
        )

    def trim(self, trial: OnTrial | None) -> None:
        """Delete what is past the bounds; trial: what may not leave yet."""
        held = self._held(trial)
        for imported in (False, True):
            past = self._db.execute(
                "SELECT at, response_id FROM interactions WHERE (policy_version = ?) = ?"
                " ORDER BY at DESC, response_id DESC LIMIT -1 OFFSET ?",
                (IMPORTED, imported, self._window),
            )
            leaving = [reply for reply in past if reply not in held]
            if leaving:
                # Not always newer than what left before: it may have been held meanwhile.
                self._db.execute(
                    "INSERT INTO departed VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
                    " SET at = excluded.at, response_id = excluded.response_id"
                    " WHERE (excluded.at, excluded.response_id) > (at, response_id)",
                    (imported, *leaving[0]),
                )
                self._depart([response_id for _, response_id in leaving])
        (statements,) = self._db.execute("SELECT count(*) FROM statements").fetchone()
        if statements > self._waiting * 1.05:  # not at every batch: to look for them takes a while
            self._db.execute(
                "DELETE FROM statements WHERE rowid IN (SELECT s.rowid FROM statements AS s"
                " WHERE NOT EXISTS (SELECT 1 FROM interactions AS i WHERE i.response_id = s.response_id)"
                " ORDER BY s.at DESC, s.feedback_id DESC, s.user, s.aspect, s.response_id LIMIT -1 OFFSET ?)",
                (self._waiting,),
            )

    def shrink(self) -> None:
        """Give free pages back to the file system, if they are many; between transactions."""
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        if free > _FREE_PAGES:
            self._db.executescript("PRAGMA incremental_vacuum")  # execute() would free one page, and stop

    def _held(self, trial: OnTrial | None) -> set[tuple[int, str]]:
        """(at, response_id) of the replies on trial, of the first ones if they are more than may be."""
        if trial is None:
            return set()
        rows = self._db.execute(
            "SELECT at, response_id FROM interactions WHERE policy_version IN (?, ?) AND NOT pinned AND at >= ?"
            " ORDER BY at, response_id LIMIT ?",
            (trial.canary, trial.stable, trial.since, most_on_trial(self._window)),
        )
        return set(rows)

    def _depart(self, response_ids: Sequence[str]) -> None:
        leaving = (json.dumps(response_ids),)
        self._db.execute(
            "INSERT INTO tallied SELECT i.policy_version, s.aspect, sum(s.slot = 'vote' AND s.value = 1),"
            " sum(s.slot = 'vote' AND s.value = -1), count(*)"
            " FROM standing AS s JOIN interactions AS i USING (response_id)"
            " WHERE s.slot != 'comment' AND i.response_id IN (SELECT value FROM json_each(?))"
            " GROUP BY i.policy_version, s.aspect"
            " ON CONFLICT DO UPDATE SET up = up + excluded.up, down = down + excluded.down,"
            " judgements = judgements + excluded.judgements",
            leaving,
        )
        for table in ("statements", "interactions"):
            self._db.execute(
                f"DELETE FROM {table} WHERE response_id IN (SELECT value FROM json_each(?))",  # noqa: S608
                leaving,
            )
