"""What a round tells of itself, whatever becomes of it, and of the learner."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from plaudit.v1.loop_pb2 import LearnerReport, RoundReport
from plaudit.v1.policy_pb2 import PolicyState
from plaudit.wilson import wilson
from plaudit_learner.ppo.improve import IterationMetrics
from tests.learner.test_reward_rounds import Rounds
from tests.learner.test_rounds import OPTIONS, Killed, vote


def told(home: Rounds) -> tuple[LearnerReport, dict[int, RoundReport]]:
    """What waits to be sent: the sender's thread does not run here."""
    waiting = home.learner._reports._sender._waiting
    rounds = {progress.round.number: progress.round for progress in waiting.values() if progress.HasField("round")}
    return waiting["learner"].learner, rounds


def opened(path: Path, model: Path, **options: str) -> Rounds:
    home = Rounds(path, model, **OPTIONS | options)
    home.learner._intake.start()
    home.learner._reports.opened(home.learner._intake.releases)
    home.learner._reports.stage("waiting")
    return home


@pytest.fixture
def home(tmp_path: Path, tiny_model: Path) -> Iterator[Rounds]:
    home = opened(tmp_path, tiny_model)
    yield home
    home.close()


def test_the_learner_tells_what_it_counted(home: Rounds) -> None:
    vote(home.store, home.policy, 0, 30)
    home.learner._take_in(0.0)
    learner, rounds = told(home)
    assert rounds == {}
    assert (learner.stage, learner.lag, learner.new_votes, learner.votes_per_round) == ("waiting", 0, 30, 40)
    (approval,) = learner.approvals
    tally = home.store.tallies("quality")["v1"]
    assert (approval.policy_version, approval.up, approval.down) == ("v1", tally.up, tally.down)
    assert (approval.low, approval.high) == pytest.approx(wilson(tally.up, 30))
    assert sum(bucket.up for bucket in learner.buckets) == tally.up
    assert sum(bucket.down for bucket in learner.buckets) == tally.down
    assert learner.stage_since.seconds > 0


def test_a_round_tells_all_that_it_did(home: Rounds) -> None:
    vote(home.store, home.policy, 0, 60)
    stages, seen = [], []
    updated, said = home.learner._progress, home.learner._reports.stage

    def look(iterations: int, metrics: IterationMetrics) -> None:
        updated(iterations, metrics)
        learner, rounds = told(home)
        seen.append((learner.stage, learner.new_votes, len(rounds[1].updates), rounds[1].HasField("ended_at")))

    def listen(stage: str) -> None:
        said(stage)
        stages.append((stage, told(home)[0].new_votes))

    home.learner._progress = look  # type: ignore[method-assign]
    home.learner._reports.stage = listen  # type: ignore[method-assign]
    home.learner._take_in(0.0)
    assert told(home)[0].new_votes == 60
    home.learner._round()
    home.learner._take_in(0.0)
    assert stages == [("rewarding", 0), ("improving", 0), ("gating", 0), ("publishing", 0)]
    assert seen == [("improving", 0, 1, False), ("improving", 0, 2, False)]
    report = told(home)[1][1]
    event = home.learner._intake.releases.event("v1")
    assert event is not None
    assert (report.parent, report.reference, report.votes) == ("v0", "v0", 60)
    (head,) = report.heads
    assert (head.aspect, head.judgements) == ("quality", 60)
    assert head.auc == pytest.approx(event.metrics["reward_model_auc"])
    assert 0 <= head.accuracy <= 1
    assert [update.number for update in report.updates] == [1, 2]
    assert all(math.isfinite(u.reward) and u.kl >= 0 and u.entropy > 0 and u.reply_length > 0 for u in report.updates)
    assert (report.updates_planned, report.kl_budget) == (2, event.metrics["kl_budget"])
    assert (report.version, report.outcome, report.reason) == ("v1", event.state, event.reason)
    assert report.started_at.ToNanoseconds() <= report.updates[0].time.ToNanoseconds()
    assert report.updates[1].time.ToNanoseconds() <= report.ended_at.ToNanoseconds() == event.time.ToNanoseconds()


def test_a_round_that_waits_for_more_votes_says_so(home: Rounds) -> None:
    vote(home.store, home.policy, 0, 2)
    home.learner._round()
    report = told(home)[1][1]
    assert report.HasField("ended_at")
    assert (report.version, report.outcome) == ("", PolicyState.POLICY_STATE_UNSPECIFIED)
    assert report.reason.startswith("waits for more votes: ")
    home.learner._reports.round_begins(1, "v0", "v0", 60)
    report = told(home)[1][1]
    assert (report.votes, report.reason, report.HasField("ended_at")) == (60, "", False), "begun anew under its number"


def test_a_learner_that_comes_back_goes_on_with_the_report(tmp_path: Path, tiny_model: Path) -> None:
    home = opened(tmp_path, tiny_model)
    vote(home.store, home.policy, 0, 60)
    updated = home.learner._progress

    def kill(iterations: int, metrics: IterationMetrics) -> None:
        updated(iterations, metrics)
        if metrics.iteration == 2:
            raise Killed  # before the checkpoint of this update is written: it is made again

    home.learner._progress = kill  # type: ignore[method-assign]
    with pytest.raises(Killed):
        home.learner._round()
    before = RoundReport.FromString(told(home)[1][1].SerializeToString())
    home.close()

    home = opened(tmp_path, tiny_model)
    assert told(home)[1] == {1: before}
    home.learner._round()
    report = told(home)[1][1]
    assert [update.number for update in report.updates] == [1, 2]
    assert report.updates[0] == before.updates[0]
    assert report.updates[1].reward == before.updates[1].reward, "made again, to the same bits"
    assert report.updates[1].time.ToNanoseconds() > before.updates[1].time.ToNanoseconds()
    assert report.started_at == before.started_at
    assert report.version == "v1"
    home.close()

    # Killed after the event, before the report: the event tells how it ended.
    before.ClearField("ended_at")
    (tmp_path / "reports" / "1").write_bytes(before.SerializeToString())
    (tmp_path / "reports" / "2").write_bytes(b"\xff torn")
    home = opened(tmp_path, tiny_model)
    again = told(home)[1]
    assert list(again) == [1]
    assert (again[1].version, again[1].outcome, again[1].ended_at) == ("v1", report.outcome, report.ended_at)
    home.close()


def test_a_round_that_is_not_gone_on_with_does_not_run_for_ever(home: Rounds) -> None:
    home.learner._reports.round_begins(1, "v0", "v0", 60)
    home.learner._reports.no_round()
    report = told(home)[1][1]
    assert report.HasField("ended_at")
    assert report.reason == "was cut off, and is not due now"


def test_the_last_hundred_rounds_are_kept(home: Rounds, tmp_path: Path) -> None:
    for number in range(1, 106):
        home.learner._reports.round_begins(number, "v0", "v0", 60)
        home.learner._reports.round_ends(number, "is over")
    assert sorted(map(int, (path.name for path in (tmp_path / "reports").iterdir()))) == list(range(6, 106))


def test_a_full_disk_stops_no_round(home: Rounds, tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file where the reports should go")
    home.learner._reports.round_begins(1, "v0", "v0", 60)
    home.learner._reports.round_ends(1, "is over")
    assert told(home)[1][1].reason == "is over"
