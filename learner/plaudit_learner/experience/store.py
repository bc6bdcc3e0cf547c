"""The experience store: interactions and what people said of them, in one SQLite file.

    interactions ──┐
                   ├─ joined on response_id ──▶ experience
    statements ────┘   (either may come first)

A statement is kept under its idempotency key; records with the same key are one statement, made when the earliest of
them was accepted. What *stands* of one user on one reply and aspect is derived: a later vote (thumb or rating) replaces
an earlier one, likewise a comment, or a preference over the same other reply; a retraction takes back all that came
before it. So the state is a pure function of the set of records, whatever their order and number (invariant 2), and a
vote may come before its interaction (invariant 3). What is kept is bounded (`retention.py`), and what is erased stays
away (`erasure.py`). What it remembers of the event log itself is in `heard.py`, what a trial is judged by in
`on_trial.py`, and how a statement is kept in `slots.py`.
"""

from __future__ import annotations

import array
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from plaudit.releases import IMPORTED
from plaudit.tracing import trace_of
from plaudit.v1.events_pb2 import Erasure, Feedback, Interaction
from plaudit.v1.sampling_pb2 import FinishReason
from plaudit_learner.experience import erasure, heard, on_trial, retention, slots
from plaudit_learner.experience import timeline as timelines
from plaudit_learner.experience.on_trial import Ballot, Exposure, OnTrial
from plaudit_learner.policy import PromptReply, prompt_key
from plaudit_learner.ppo.rollouts import Rollout
from plaudit_learner.reward.judgements import Preference, Rating, Vote

_SCHEMA = """
CREATE TABLE IF NOT EXISTS interactions (
    response_id    TEXT PRIMARY KEY,
    policy_version TEXT NOT NULL,
    user           TEXT NOT NULL,
    prompt_key     TEXT NOT NULL,
    prompt         BLOB NOT NULL,
    reply          BLOB NOT NULL,
    logprobs       BLOB NOT NULL,
    temperature    REAL NOT NULL,
    max_tokens     INTEGER NOT NULL,
    finish_reason  INTEGER NOT NULL,
    at             INTEGER NOT NULL,
    finished_at    INTEGER NOT NULL DEFAULT 0,
    pinned         INTEGER NOT NULL DEFAULT 0,
    traceparent    TEXT NOT NULL DEFAULT '',
    conversation   TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS statements (
    response_id TEXT NOT NULL,
    user        TEXT NOT NULL,
    aspect      TEXT NOT NULL,
    feedback_id TEXT NOT NULL,
    slot        TEXT NOT NULL,
    value       INTEGER NOT NULL,
    words       TEXT NOT NULL,
    at          INTEGER NOT NULL,
    traceparent TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (response_id, user, aspect, feedback_id)
) STRICT;
CREATE TABLE IF NOT EXISTS base_model (only INTEGER PRIMARY KEY, sha256 TEXT NOT NULL) STRICT;
CREATE VIEW IF NOT EXISTS standing AS
    SELECT * FROM statements AS said
    WHERE slot != 'retraction' AND NOT EXISTS (
        SELECT 1 FROM statements AS later
        WHERE later.response_id = said.response_id AND later.user = said.user AND later.aspect = said.aspect
          AND (later.slot = said.slot OR later.slot = 'retraction')
          AND (later.at, later.feedback_id) > (said.at, said.feedback_id)
    );
"""


_LATER_COLUMNS = {
    "interactions": (
        "finished_at INTEGER NOT NULL DEFAULT 0",
        "pinned INTEGER NOT NULL DEFAULT 0",
        "traceparent TEXT NOT NULL DEFAULT ''",
        "conversation TEXT NOT NULL DEFAULT ''",
    ),
    "statements": ("traceparent TEXT NOT NULL DEFAULT ''",),
}
"""Columns that stores of earlier releases lack; of what those kept, 0 or nothing says that it is not known."""

_INDEX = """
CREATE INDEX IF NOT EXISTS interactions_in_order ON interactions (at, response_id, policy_version, pinned);
DROP INDEX IF EXISTS interactions_at;
"""
"""All that tells what leaves and what is on trial, which is asked with each batch; the rows themselves are long."""

_INCREMENTAL = 2  # SQLite's auto_vacuum that shrinks the file when asked to


class OtherBaseModel(ValueError):
    """The store holds token ids of another base model."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Thumbs that stand on the replies of one version."""

    up: int
    down: int


class Experience:
    """The store. One writer; every method raises sqlite3.Error if the file cannot be used."""

    def __init__(self, path: Path, *, keep: int | None = None) -> None:
        """keep: the replies of each kind, sampled here and imported, that are kept, the most recent ones; None: all.

        Those on trial stay beyond that: see `retain`.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
        if keep is not None and self._db.execute("PRAGMA auto_vacuum").fetchone() != (_INCREMENTAL,):
            self._db.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
            if self._db.execute("PRAGMA page_count").fetchone() != (0,):
                self._db.execute("VACUUM")  # a file made without it has to be written anew
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(f"BEGIN; {_SCHEMA}{heard.SCHEMA}{erasure.SCHEMA}{retention.SCHEMA} COMMIT;")
        self._add_later_columns()
        self._db.executescript(f"BEGIN; {_INDEX} COMMIT;")
        self.heard = heard.Heard(self._db)
        """What it remembers of the event log, written in the same transactions."""
        self._erasures = erasure.Erasures(self._db)
        self._retention = retention.Retention(self._db, keep) if keep is not None else None

    def _add_later_columns(self) -> None:
        for table, columns in _LATER_COLUMNS.items():
            there = {name for _, name, *_ in self._db.execute(f"PRAGMA table_info({table})")}
            for column in columns:
                if column.split()[0] not in there:
                    self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column}")

    def belongs_to(self, base_model_sha256: str) -> None:
        """Say which base model the token ids are of. Raises OtherBaseModel if they are of another."""
        self._db.execute("INSERT OR IGNORE INTO base_model VALUES (1, ?)", (base_model_sha256,))
        (known,) = self._db.execute("SELECT sha256 FROM base_model").fetchone()
        if known != base_model_sha256:
            raise OtherBaseModel(
                f"this state directory learnt from replies of another base model ({known[:12]}…, not "
                f"{base_model_sha256[:12]}…), whose token ids mean something else: give another directory, event log "
                "and policy store"
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is there wholly or not at all: records and the position after them (invariant 9)."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @property
    def changes(self) -> int:
        """Grows with every change, within one process."""
        return self._db.total_changes

    def add(self, record: Interaction | Feedback | Erasure) -> None:
        """Take in a record of any of the three kinds, checked by intake."""
        if isinstance(record, Interaction):
            self.add_interaction(record)
        elif isinstance(record, Feedback):
            self.add_feedback(record)
        else:
            self.erase(record)

    def add_interaction(self, record: Interaction) -> None:
        """Keep a reply, checked by intake; one that is there already, was erased or has left changes nothing."""
        if not self._erasures.admit_interaction(record):
            return
        if self._retention is not None and not self._retention.admit_interaction(record):
            return
        self._db.execute(
            "INSERT INTO interactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                record.response_id,
                record.policy_version,
                record.user,
                prompt_key(record.prompt_token_ids),
                array.array("I", record.prompt_token_ids).tobytes(),
                array.array("I", record.reply_token_ids).tobytes(),
                array.array("f", record.behaviour_logprobs).tobytes(),
                record.sampling.temperature,
                record.sampling.max_tokens,
                record.finish_reason,
                record.started_at.ToMicroseconds(),
                record.finished_at.ToMicroseconds(),
                record.pinned,
                _traceparent(record),
                _conversation(record),
            ),
        )

    def add_feedback(self, record: Feedback) -> None:
        """Keep a statement, or learn that it was made earlier than known; one that was erased changes nothing."""
        if not self._erasures.admit_feedback(record):
            return
        slot, value, words = slots.slot(record)
        # An import's unnamed voters are different people: each gets the statement's name, and replaces nobody's.
        unnamed = record.feedback_id if record.policy_version == IMPORTED else ""
        self._db.execute(
            "INSERT INTO statements VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET slot = excluded.slot, value = excluded.value, words = excluded.words, at = excluded.at,"
            "  traceparent = excluded.traceparent"
            " WHERE (excluded.at, excluded.slot, excluded.value, excluded.words, excluded.traceparent)"
            "  < (at, slot, value, words, traceparent)",
            (
                record.response_id,
                record.user or unnamed,
                record.aspect,
                record.feedback_id,
                slot,
                value,
                words,
                record.submitted_at.ToMicroseconds(),
                _traceparent(record),
            ),
        )
        if self._retention is not None:
            self._retention.bound_reply(record.response_id)

    def erase(self, record: Erasure) -> None:
        """Delete all that a user said, or was told, up to a time, and never take it in again."""
        self._erasures.apply(record)

    @property
    def unsettled(self) -> bool:
        """Whether something was erased, and what was derived from it may still be there: see `settle`."""
        return self._erasures.unsettled

    def learning(self, number: int) -> None:
        """Say that a round, of that number, is about to learn from what there is."""
        self._erasures.learning(number)

    def settle(self) -> None:
        """Say that what was derived from what was erased is gone."""
        self._erasures.settle()

    def forget(self) -> bool:
        """Let the file forget what was erased; not in a transaction. False: a reader holds that up, ask again later."""
        if self._erasures.lingers:
            self._erasures.empty_log()
        return not self._erasures.lingers

    def retain(self, trial: OnTrial | None = None) -> None:
        """Delete what is past the bounds, but not what is on trial; belongs into the transaction that took in more."""
        if self._retention is not None:
            self._retention.trim(trial)
        self._erasures.trim()

    def shrink(self) -> None:
        """Let the file become smaller if there is much room in it; not in a transaction."""
        if self._retention is not None:
            self._retention.shrink()

    def aspects(self, window: int) -> list[str]:
        """What of the last `window` replies was voted on, in alphabetical order."""
        rows = self._db.execute(
            "SELECT DISTINCT s.aspect FROM standing AS s JOIN interactions AS i USING (response_id)"
            " WHERE s.slot != 'comment' AND i.at >= iif(i.policy_version = :foreign, :imported, :live)"
            " ORDER BY s.aspect",
            self._window(window),
        )
        return [aspect for (aspect,) in rows]

    def votes(self, aspect: str, window: int) -> list[Vote]:
        """Thumbs that stand on the last `window` replies, oldest first; those whose reply is not here yet wait."""
        thumbs = self._votes(aspect, window, (1, -1))
        return [Vote(item, value == 1, 1.0, user, aspect, *source) for item, value, user, source in thumbs]

    def ratings(self, aspect: str, window: int) -> list[Rating]:
        """Ratings that stand on the last `window` replies, oldest first."""
        stars = self._votes(aspect, window, range(slots.RATED + 1, slots.RATED + 6))
        return [Rating(item, value - slots.RATED, 1.0, user, aspect, *source) for item, value, user, source in stars]

    def preferences(self, aspect: str, window: int) -> list[Preference]:
        """Preferences that stand between two of the last `window` replies to the same prompt."""
        rows = self._db.execute(
            "SELECT i.prompt, i.reply, i.finish_reason, w.reply, w.finish_reason,"
            " iif(s.user = s.feedback_id, '', s.user), s.user, i.policy_version, i.user, s.response_id, s.at"
            " FROM standing AS s JOIN interactions AS i ON i.response_id = s.response_id"
            " JOIN interactions AS w ON 'over ' || w.response_id = s.slot AND w.prompt_key = i.prompt_key"
            " WHERE s.aspect = :aspect AND i.at >= iif(i.policy_version = :foreign, :imported, :live)"
            " AND w.at >= iif(w.policy_version = :foreign, :imported, :live)"
            " ORDER BY i.at, i.response_id, s.user, w.response_id",
            {"aspect": aspect, **self._window(window)},
        )
        return [
            Preference(_reply(prompt, better, i), _reply(prompt, worse, w), 1.0, user, aspect, *_source(*more))
            for prompt, better, i, worse, w, user, *more in rows
        ]

    def traces(self, aspects: Sequence[str], window: int, most: int) -> tuple[list[str], int]:
        """The spans (traceparents) of the judgements of these aspects that stand on the last `window` replies, and of
        those replies: the newest `most`, by when it was said, newest first; and how many there are in all.
        """
        rows = self._db.execute(
            "WITH judged AS (SELECT s.at AS at, s.traceparent AS said, i.traceparent AS sampled"
            "  FROM standing AS s JOIN interactions AS i USING (response_id)"
            "  WHERE s.slot != 'comment' AND s.aspect IN (SELECT value FROM json_each(:aspects))"
            "  AND i.at >= iif(i.policy_version = :foreign, :imported, :live)),"
            " spans AS (SELECT at, said AS span FROM judged UNION ALL SELECT at, sampled FROM judged)"
            " SELECT span, count(*) OVER () FROM spans WHERE span != '' GROUP BY span ORDER BY max(at) DESC, span"
            " LIMIT :most",
            {"aspects": json.dumps(list(aspects)), "most": most, **self._window(window)},
        ).fetchall()
        return [span for span, _ in rows], rows[0][1] if rows else 0

    def count_votes(self, *aspects: str) -> int:
        """Thumbs, ratings and preferences on all replies that ever came: every judgement counted once.

        Those that stand on replies that are here, and those that stood on others when they left the window.
        """
        (count,) = self._db.execute(
            "WITH counted AS (SELECT value AS aspect FROM json_each(?))"
            # Of each reply what was said of it: what waits for replies may be many times as much.
            " SELECT (SELECT count(*) FROM interactions CROSS JOIN standing USING (response_id)"
            "  WHERE slot != 'comment' AND aspect IN counted)"
            " + (SELECT coalesce(sum(judgements), 0) FROM tallied WHERE aspect IN counted)",
            (json.dumps(aspects),),
        ).fetchone()
        return int(count)

    def tallies(self, aspect: str) -> dict[str, Tally]:
        """Thumbs that stand, or stood on a reply when it left the window, by policy version."""
        rows = self._db.execute(
            "SELECT policy_version, sum(up), sum(down) FROM ("
            " SELECT i.policy_version, s.value = 1 AS up, s.value = -1 AS down"
            " FROM standing AS s JOIN interactions AS i USING (response_id)"
            " WHERE s.slot = 'vote' AND s.aspect = :aspect"
            " UNION ALL SELECT policy_version, up, down FROM tallied WHERE aspect = :aspect"
            ") WHERE policy_version != :foreign GROUP BY policy_version",
            {"aspect": aspect, "foreign": IMPORTED},
        )
        return {version: Tally(up, down) for version, up, down in rows}

    def timeline(self, aspect: str, most: int) -> tuple[int, list[timelines.Span]]:
        """Thumbs that stand on the replies that are here, by when they were made: see `timeline.timeline`."""
        return timelines.timeline(self._db, aspect, most)

    def exposures(self, version: str, since: int, most: int) -> list[Exposure]:
        """The first `most` replies of a version that the router drew, begun at `since` (Unix µs) or later, in order."""
        return on_trial.exposures(self._db, version, since, most)

    def ballots(self, aspect: str, versions: Sequence[str], since: int) -> list[Ballot]:
        """The thumbs and ratings that stand on replies of these versions begun at `since` (Unix µs) or later."""
        return on_trial.ballots(self._db, aspect, versions, since)

    def prompts(self, window: int) -> dict[str, tuple[int, ...]]:
        """The distinct prompts of the last `window` replies, by their key, the most recent first; none imported."""
        rows = self._db.execute(
            "SELECT prompt_key, prompt FROM interactions WHERE policy_version != :foreign AND at >= :live"
            " GROUP BY prompt_key ORDER BY max(at) DESC, prompt_key",
            self._window(window),
        )
        return {key: _tokens(prompt) for key, prompt in rows}

    def askers(self, window: int) -> dict[str, str]:
        """Who first asked each prompt of the last `window` replies, by its key; empty: unknown. None imported."""
        rows = self._db.execute(
            "SELECT prompt_key, user, min(at) FROM interactions WHERE policy_version != :foreign AND at >= :live"
            " GROUP BY prompt_key",  # SQLite takes `user` from the row of the minimum
            self._window(window),
        )
        return {key: user for key, user, _ in rows}

    def served(self, window: int, temperature: float) -> list[Rollout]:
        """Those of the last `window` sampled replies that were sampled at that temperature and not broken off.

        With the log-probabilities that the version which sampled them gave their tokens; oldest first.
        """
        rows = self._db.execute(
            "SELECT prompt, reply, finish_reason, logprobs FROM interactions"
            " WHERE policy_version != :foreign AND at >= :live AND temperature = :temperature"
            " AND finish_reason IN (:stop, :length) ORDER BY at, response_id",
            {
                **self._window(window),
                "temperature": temperature,
                "stop": FinishReason.FINISH_REASON_STOP,
                "length": FinishReason.FINISH_REASON_LENGTH,
            },
        )
        return [
            Rollout(prompt, reply, tuple(array.array("f", logprobs)), finished)
            for (prompt, reply, finished), logprobs in ((_reply(*row[:3]), row[3]) for row in rows)
        ]

    def knows(self, prompt: Sequence[int]) -> bool:
        """Whether there is a reply to this prompt."""
        query = "SELECT 1 FROM interactions WHERE prompt_key = ? LIMIT 1"
        return self._db.execute(query, (prompt_key(prompt),)).fetchone() is not None

    def usual_sampling(self, window: int) -> tuple[float, int] | None:
        """(temperature, max_tokens) that most users ask for in the last `window` sampled replies; None without any.

        An unknown user counts each time. Greedy replies do not count: nothing can be learnt about alternatives from one
        that has none.
        """
        row = self._db.execute(
            "SELECT temperature, max_tokens FROM interactions"
            " WHERE policy_version != :foreign AND at >= :live AND temperature > 0"
            " GROUP BY temperature, max_tokens"
            " ORDER BY count(DISTINCT iif(user = '', response_id, user)) DESC, temperature, max_tokens LIMIT 1",
            self._window(window),
        ).fetchone()
        return (float(row[0]), int(row[1])) if row else None

    def _votes(
        self, aspect: str, window: int, values: Sequence[int]
    ) -> list[tuple[PromptReply, int, str, tuple[str, str, int]]]:
        rows = self._db.execute(
            "SELECT i.prompt, i.reply, i.finish_reason, s.value,"
            " iif(s.user = s.feedback_id, '', s.user), s.user, i.policy_version, i.user, s.response_id, s.at"
            " FROM interactions AS i CROSS JOIN standing AS s USING (response_id)"
            " WHERE s.slot = 'vote' AND s.aspect = :aspect AND s.value IN (SELECT value FROM json_each(:values_))"
            " AND i.at >= iif(i.policy_version = :foreign, :imported, :live) ORDER BY i.at, i.response_id, s.user",
            {"aspect": aspect, "values_": json.dumps(list(values)), **self._window(window)},
        )
        return [
            (_reply(prompt, reply, reason), value, user, _source(*more))
            for prompt, reply, reason, value, user, *more in rows
        ]

    def _window(self, size: int) -> dict[str, int | str]:
        """When the last `size` replies began, in microseconds, of those sampled here and of those that were imported.

        Each kind has a window of its own: a large file must not push out what people say now.
        """
        query = "SELECT at FROM interactions WHERE (policy_version = ?) = ? ORDER BY at DESC LIMIT 1 OFFSET ?"

        def start(imported: bool) -> int:
            row = self._db.execute(query, (IMPORTED, imported, size - 1)).fetchone()
            return int(row[0]) if row else 0

        return {"foreign": IMPORTED, "imported": start(True), "live": start(False)}


def _traceparent(record: Interaction | Feedback) -> str:
    """That of the record; what is none is left out, since anybody's may stand in a log."""
    return record.traceparent if trace_of(record.traceparent) else ""


def _conversation(record: Interaction) -> str:
    """Hashed: its id is the client's, who may have put anything into it; all that is asked is which are the same."""
    return hashlib.sha256(record.conversation_id.encode()).hexdigest()[:32] if record.conversation_id else ""


def _source(user: str, version: str, asker: str, response_id: str, at: int) -> tuple[str, str, int]:
    """Receipt, voter and time of a judgement by `user` on a reply of `version` to `asker`."""
    # A voter is who asked: a name that was only given with the vote proves nothing. Of imports the operator's word
    # counts: those without a user are each a voter.
    return response_id, (user or response_id) if version == IMPORTED else asker, at


def _tokens(blob: bytes) -> tuple[int, ...]:
    return tuple(array.array("I", blob))


def _reply(prompt: bytes, reply: bytes, reason: int) -> PromptReply:
    return PromptReply(_tokens(prompt), _tokens(reply), reason == FinishReason.FINISH_REASON_STOP)
