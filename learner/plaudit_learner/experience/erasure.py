"""Erasure in the experience store: what a user said, or was told, up to a time is gone, and stays gone.

    erasure ──▶ `erasures`: user, time ──┬─▶ rows that are there are deleted
                                         └─▶ records that come later are not let in
    what was deleted or not let in ──▶ `erased`: the names of replies and statements

A record may come again, before or after the erasure: from a log that is read anew, from a server's outbox, from a dead
letter. So a name outlives what it named: a statement whose earliest record was erased is erased, whatever a retry of it
says of its time, and statements of others about, or in comparison with, an erased reply go with it. What is kept is a
function of the set of records, as without erasures, as long as one idempotency key says one thing.

`settled` says whether what was derived from the data (round, reward models) has been thrown away too: the loop does it,
and is told again after a crash. It was derived from certain users' data (`learnt_from`): an erasure of somebody else
leaves it as it is, or no round would ever end where people are erased more often than that.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3

from plaudit.v1.events_pb2 import Erasure, Feedback, Interaction

SCHEMA = """
CREATE TABLE IF NOT EXISTS erasures (user TEXT PRIMARY KEY, at INTEGER NOT NULL, settled INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS learnt_from (user TEXT PRIMARY KEY, round INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erased (name TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS statements_over ON statements (slot) WHERE slot >= 'over ' AND slot < 'over!';
"""

_MOST_NAMES = 1_000_000  # about 100 MB; past it the oldest are forgotten, and may come back from an older log only


class Erasures:
    """Works within the transactions of the store whose connection it is given."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.lingers = True
        """Whether what was erased may still stand in the write-ahead log, as it may in one that is found."""

    def learning(self, number: int) -> None:
        """A round is about to learn from whoever's data there is; those of the round before it are still kept."""
        self._db.execute(
            "INSERT INTO learnt_from SELECT user, ? FROM ("
            " SELECT user FROM interactions UNION SELECT user FROM statements WHERE user != feedback_id)"
            " WHERE user != '' ON CONFLICT DO UPDATE SET round = excluded.round",
            (number,),
        )
        self._db.execute("DELETE FROM learnt_from WHERE round < ?", (number - 1,))

    def apply(self, record: Erasure) -> None:
        """Delete what there is of a user up to a time; an erasure up to an earlier time than known changes nothing."""
        user, at = record.user, record.time.ToMicroseconds()
        changed = self._db.execute(
            "INSERT INTO erasures VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
            " SET at = excluded.at, settled = min(settled, excluded.settled) WHERE excluded.at > at",
            (user, at, not self._learnt_from(user)),
        ).rowcount
        if not changed:
            return
        told = "SELECT response_id, at FROM interactions WHERE user = ? AND at <= ?"
        for response_id, when in self._db.execute(told, (user, at)).fetchall():
            self._erase_reply(response_id, when)
        said = "SELECT response_id, user, aspect, feedback_id, at FROM statements WHERE user = ? AND at <= ?"
        for *key, when in self._db.execute(said, (user, at)).fetchall():
            self._erase_statement(key, when)

    def admit_interaction(self, record: Interaction) -> bool:
        """Whether a reply may be kept; one that may not is gone for good."""
        at = record.started_at.ToMicroseconds()
        if self._is_erased(record.user, at):
            self._erase_reply(record.response_id, at)
            return False
        return not self._knows(_reply(record.response_id))

    def admit_feedback(self, record: Feedback) -> bool:
        """Whether a statement may be kept; one that may not is gone for good."""
        key = [record.response_id, record.user, record.aspect, record.feedback_id]
        at = record.submitted_at.ToMicroseconds()
        if self._is_erased(record.user, at):
            # If it was there, as made later than it was, something may have been learnt from it.
            if self._erase_statement(key, at) and self._learnt_from(record.user):
                self._db.execute("UPDATE erasures SET settled = 0 WHERE user = ?", (record.user,))
            return False
        return not self._knows(_statement(key), _reply(record.response_id), _reply(record.preferred_over))

    def trim(self) -> None:
        """Keep the number of names within its bound."""
        (count,) = self._db.execute("SELECT count(*) FROM erased").fetchone()
        if count > _MOST_NAMES:
            self._db.execute(
                "DELETE FROM erased WHERE name IN (SELECT name FROM erased ORDER BY at, name LIMIT ?)",
                (count - _MOST_NAMES,),
            )

    @property
    def unsettled(self) -> bool:
        """Whether something was erased since `settle` from which something was derived."""
        return self._db.execute("SELECT 1 FROM erasures WHERE NOT settled").fetchone() is not None

    def settle(self) -> None:
        """What was derived from what was erased is gone too."""
        self._db.execute("DELETE FROM learnt_from WHERE user IN (SELECT user FROM erasures WHERE NOT settled)")
        self._db.execute("UPDATE erasures SET settled = 1 WHERE NOT settled")

    def empty_log(self) -> None:
        """Let the write-ahead log forget: pages from before an erasure stand in it until it is emptied.

        A reader in another process holds that up: it lingers until the next call.
        """
        (patience,) = self._db.execute("PRAGMA busy_timeout").fetchone()
        self._db.execute("PRAGMA busy_timeout = 0")
        busy, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._db.execute(f"PRAGMA busy_timeout = {patience}")
        self.lingers = bool(busy)

    def _learnt_from(self, user: str) -> bool:
        """Whether something may have been: anybody's, if nobody is known, as in a store of an earlier release."""
        query = "SELECT count(*) = 0 OR coalesce(sum(user = ?), 0) FROM learnt_from"
        return bool(self._db.execute(query, (user,)).fetchone()[0])

    def _erase_reply(self, response_id: str, at: int) -> None:
        self.lingers = True
        self._keep_name(_reply(response_id), at)
        self._db.execute("DELETE FROM interactions WHERE response_id = ?", (response_id,))
        self._db.execute("DELETE FROM statements WHERE response_id = ?", (response_id,))
        self._db.execute(
            "DELETE FROM statements WHERE slot >= 'over ' AND slot < 'over!' AND slot = ?", (f"over {response_id}",)
        )

    def _erase_statement(self, key: list[str], at: int) -> bool:
        """Whether it was there."""
        self.lingers = True
        self._keep_name(_statement(key), at)
        return bool(
            self._db.execute(
                "DELETE FROM statements WHERE response_id = ? AND user = ? AND aspect = ? AND feedback_id = ?", key
            ).rowcount
        )

    def _is_erased(self, user: str, at: int) -> bool:
        query = "SELECT 1 FROM erasures WHERE user = ? AND at >= ?"
        return self._db.execute(query, (user, at)).fetchone() is not None

    def _knows(self, *names: str) -> bool:
        query = f"SELECT 1 FROM erased WHERE name IN ({', '.join('?' * len(names))})"  # noqa: S608 - question marks
        return self._db.execute(query, names).fetchone() is not None

    def _keep_name(self, name: str, at: int) -> None:
        self._db.execute("INSERT INTO erased VALUES (?, ?) ON CONFLICT DO NOTHING", (name, at))


def _reply(response_id: str) -> str:
    return f"reply {response_id}"


def _statement(key: list[str]) -> str:
    """Hashed: an idempotency key is the client's, who may have put anything into it."""
    return f"statement {hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}"
