"""Reports on their way: the newest of each key arrives, and nobody waits for the event log."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from plaudit.events import PROGRESS, EventLog, from_beginning, open_log
from plaudit.v1.events_pb2 import Progress
from plaudit.v1.loop_pb2 import LearnerReport, RoundReport
from plaudit_learner.progress import ProgressSender


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with open_log(f"sqlite:{tmp_path / 'events.sqlite'}") as log:
        yield log


class Reader:
    """Reads the topic on, as a server does."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.positions = from_beginning(log, PROGRESS)
        self.seen: list[Progress] = []

    def until(self, stage: str) -> LearnerReport:
        """The learner's report that says this."""
        deadline = time.monotonic() + 30
        while not self.seen or self.seen[-1].learner.stage != stage:
            assert time.monotonic() < deadline, self.seen
            for entry in self.log.read(self.positions, timeout=1.0):
                self.positions[entry.topic, entry.partition] = entry.offset + 1
                self.seen.append(Progress.FromString(entry.value))
        return self.seen[-1].learner


def test_the_newest_of_each_key_is_sent(log: EventLog) -> None:
    sender, reader = ProgressSender(log, pause=0.01), Reader(log)
    for votes in range(5):
        sender.say_round(RoundReport(number=7, votes=votes))
        sender.say_learner(LearnerReport(stage="waiting", new_votes=votes))
    before = time.time()
    with sender:
        report = reader.until("waiting")
        assert report.new_votes == 4
        assert before - 1 < report.time.ToNanoseconds() / 1e9 < time.time() + 1
        assert [progress.round.votes for progress in reader.seen[:-1]] == [4]
        sender.say_learner(LearnerReport(stage="waiting", new_votes=4))  # nothing new
        sender.say_learner(LearnerReport(stage="improving"))
        reader.until("improving")
        assert len(reader.seen) == 3
        sender.say_learner(LearnerReport(stage="gating"))
    assert reader.until("gating"), "what waited was sent at the end"


def test_it_shows_that_it_lives(log: EventLog) -> None:
    with ProgressSender(log, pause=0.01, heartbeat=0.05) as sender:
        reader = Reader(log)
        sender.say_learner(LearnerReport(stage="waiting"))
        first = reader.until("waiting").time.ToNanoseconds()
        reader.seen.clear()
        assert reader.until("waiting").time.ToNanoseconds() > first


def test_while_the_log_takes_nothing_nobody_waits_and_the_newest_comes_later(
    tmp_path: Path, log: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    with ProgressSender(log, pause=0.01) as sender:
        reader = Reader(log)
        with closing(sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            log._busy_timeout = 0.05  # type: ignore[attr-defined]
            log._writer.execute("PRAGMA busy_timeout = 50")  # type: ignore[attr-defined]
            sender.say_learner(LearnerReport(stage="waiting"))
            deadline = time.monotonic() + 30
            while "cannot be reported now" not in caplog.text:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            began = time.monotonic()
            for update in range(100):
                sender.say_round(RoundReport(number=1, updates_planned=update))
                sender.say_learner(LearnerReport(stage="improving", lag=update))
            assert time.monotonic() - began < 1, "it does not wait for a log that is away"
            other.execute("ROLLBACK")
        assert reader.until("improving").lag == 99
        assert [p.round.updates_planned for p in reader.seen if p.HasField("round")] == [99]
    assert caplog.text.count("cannot be reported now") == 1
    log.close()
    with ProgressSender(log, pause=0.01) as sender:
        sender.say_learner(LearnerReport(stage="waiting"))  # a log that is closed ends nothing either
