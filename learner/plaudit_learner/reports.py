"""What the learner tells people of itself: log lines, Prometheus metrics, and the progress that servers show.

Called at the places where something is to be told; nothing is decided by it, and nothing here stops a round: files
that cannot be written are done without. The reports of rounds are kept on disk, so that a learner that was killed in a
round goes on with its report, and tells a new event log what was before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from plaudit import logs, tracing
from plaudit.releases import Releases, label, number
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.loop_pb2 import Approval, LearnerReport, PpoUpdate, RewardModelHead, RoundReport
from plaudit.wilson import wilson
from plaudit_learner.metrics import LearnerMetrics
from plaudit_learner.progress import PAUSE_SECONDS, ProgressSender

if TYPE_CHECKING:
    from plaudit_learner.config import LearnerSettings
    from plaudit_learner.experience.store import Experience
    from plaudit_learner.gate.judge import Check
    from plaudit_learner.ppo.update import IterationMetrics
    from plaudit_learner.reward.model import RewardModel
    from plaudit_learner.rounds import Round

log = logging.getLogger(__name__)

MOST_ROUNDS = 100
"""Rounds whose reports are kept, the last ones."""
MOST_BUCKETS = 200
"""Spans of time that votes are told by."""
_NAN = float("nan")


class Reports:
    """Part of the one active learner."""

    def __init__(
        self, settings: LearnerSettings, store: Experience, metrics: LearnerMetrics, sender: ProgressSender
    ) -> None:
        self._aspect = settings.aspect
        self._directory = settings.state_dir / "reports"
        self._store = store
        self._metrics = metrics
        self._sender = sender
        self._learner = LearnerReport(votes_per_round=settings.votes_per_round)
        self._rounds = _read(self._directory)
        self._round: RoundReport | None = None  # the one that has begun, and not ended
        self._voted = True  # whether there may be votes that were not told
        self._told_at = -PAUSE_SECONDS
        self.stage("starting")

    def opened(self, releases: Releases) -> None:
        """The event log was opened, perhaps a new one: say again what it may have forgotten, or never heard."""
        for report in self._rounds.values():
            if not report.HasField("ended_at") and (event := _event(releases, report.number)) is not None:
                _end(report, event.reason, event)  # it was killed between the one and the other
                self._keep(report)
            self._sender.say_round(report)

    def stage(self, stage: str) -> None:
        """Say what it does now."""
        self._metrics.stage.state(stage)
        if stage != self._learner.stage:
            self._learner.stage = stage
            self._learner.stage_since.GetCurrentTime()
            self._sender.say_learner(self._learner)

    def taken_in(self, records: int, *, lag: int, new_votes: int) -> None:
        """Say how many records were taken in just now, how many wait, and how many votes wait for a round."""
        self._metrics.took_in(records, lag, max(0, new_votes))
        self._learner.lag, self._learner.new_votes = lag, max(0, new_votes)
        self._voted = self._voted or records > 0
        # Not oftener than it is sent: all votes are counted for it.
        if self._voted and time.monotonic() - self._told_at >= PAUSE_SECONDS:
            self._count()
        self._sender.say_learner(self._learner)

    def round_begins(self, number: int, parent: str, reference: str, votes: int) -> None:
        """Say what a round is made from; what was told of an earlier attempt is forgotten."""
        self._learner.new_votes = 0  # the round has them
        self.stage("rewarding")
        self._round = RoundReport(number=number, parent=parent, reference=reference, votes=votes)
        self._round.started_at.GetCurrentTime()
        self._tell()

    def fitted(self, reward_model: RewardModel) -> None:
        """Say how good the reward model is."""
        self._metrics.fitted(reward_model)
        for aspect, quality in reward_model.heads.items():
            log.info("reward model of %s: %s", aspect, quality.summary())
        if self._round is not None:
            self._round.ClearField("heads")
            self._round.heads.extend(_heads(reward_model))
            self._tell()

    def improving(self, this: Round, reward_model: RewardModel) -> None:
        """Say what PPO is to do; if the round goes on where it was cut off, so does its report."""
        self.stage("improving")
        self._metrics.ppo_kl_budget.set(this.how.kl_budget)
        before = self._rounds.get(this.number)
        if before is None or (before.parent, before.votes) != (this.parent, this.votes):
            before = RoundReport(number=this.number, parent=this.parent, votes=this.votes)
            before.started_at.GetCurrentTime()
        self._round = before
        for field in ("ended_at", "reason", "heads"):
            before.ClearField(field)
        before.reference = reward_model.reference
        before.heads.extend(_heads(reward_model))
        before.updates_planned, before.kl_budget = this.how.iterations, this.how.kl_budget
        self._tell()

    def updated(self, iterations: int, metrics: IterationMetrics) -> None:
        """Say what one update of at most `iterations` did."""
        self._metrics.updated(metrics)
        log.info(
            "update %d of %d: reward %+.2f, KL %.2f nats a reply, entropy %.2f, %.0f tokens",
            metrics.iteration,
            iterations,
            metrics.reward,
            metrics.kl,
            metrics.entropy,
            metrics.length,
        )
        if self._round is None:
            return
        update = PpoUpdate(
            number=metrics.iteration,
            reward=metrics.reward,
            kl=metrics.kl,
            entropy=metrics.entropy,
            reply_length=metrics.length,
        )
        update.time.GetCurrentTime()
        # Killed before its checkpoint was written, an update is made again.
        earlier = [other for other in self._round.updates if other.number < update.number]
        self._round.ClearField("updates")
        self._round.updates.extend([*earlier, update])
        self._tell()

    def gated(self, checks: Sequence[Check]) -> None:
        """Say what the gate found."""
        self._metrics.gated(checks)
        for check in checks:
            log.info(
                "gate: %s %.3f, compared with %.3f, %s %.3f: %s",
                check.measure,
                check.candidate,
                check.reference,
                "at most" if check.upper else "at least",
                check.bound,
                "kept" if check.kept else "broken",
            )

    def round_published(self, event: PolicyEvent) -> None:
        """Say which version came of the round."""
        outcome = label(event.state)
        began = 0 if self._round is None else self._round.started_at.ToMicroseconds()
        self._metrics.round_ended(outcome, (event.time.ToMicroseconds() - began) / 1e6 if began else 0.0)
        tracing.current().set({"plaudit.policy_version": event.version, "plaudit.outcome": outcome})
        this = int(event.metrics["round"])
        told = logs.fields(step=outcome, policy_version=event.version, actor="learner", round=this)
        log.info("round %d: %s is %s: %s", this, event.version, outcome, event.reason, extra=told)
        self._finish(event.reason, event)

    def round_ends(self, number: int, reason: str) -> None:
        """Say that a round came to an end without a version."""
        log.info("round %d %s", number, reason)
        self._finish(reason, None)

    def no_round(self) -> None:
        """Say that none is under way: one that was cut off is not gone on with for now."""
        for report in self._rounds.values():
            if not report.HasField("ended_at"):
                self._round = report
                self._finish("was cut off, and is not due now", None)

    def _finish(self, reason: str, event: PolicyEvent | None) -> None:
        if self._round is not None:
            _end(self._round, reason, event)
            self._tell()
            self._round = None

    def _count(self) -> None:
        self._voted, self._told_at = False, time.monotonic()
        tallies = self._store.tallies(self._aspect)
        self._metrics.tally(tallies)
        report = self._learner
        report.ClearField("approvals")
        report.ClearField("buckets")
        for version in sorted(tallies, key=number):
            up, down = tallies[version].up, tallies[version].down
            low, high = wilson(up, up + down)
            report.approvals.append(Approval(policy_version=version, up=up, down=down, low=low, high=high))
        seconds, spans = self._store.timeline(self._aspect, MOST_BUCKETS)
        for span in spans:
            bucket = report.buckets.add(seconds=seconds, policy_version=span.policy_version, up=span.up, down=span.down)
            bucket.start.FromSeconds(span.start)

    def _tell(self) -> None:
        if self._round is not None:
            self._rounds[self._round.number] = self._round
            self._sender.say_round(self._round)
            self._keep(self._round)

    def _keep(self, report: RoundReport) -> None:
        with suppress(OSError):  # a full disk: it will be told to nobody after a restart
            self._directory.mkdir(exist_ok=True)
            unfinished = self._directory / "unfinished"
            unfinished.write_bytes(report.SerializeToString())
            unfinished.replace(self._directory / str(report.number))
            for old in sorted(self._rounds)[:-MOST_ROUNDS]:
                del self._rounds[old]
                (self._directory / str(old)).unlink(missing_ok=True)


def _read(directory: Path) -> dict[int, RoundReport]:
    """The reports that were kept, by the numbers of their rounds, oldest first."""
    reports = {}
    for file in directory.glob("*") if directory.exists() else ():
        with suppress(OSError, DecodeError):  # torn: done without
            report = RoundReport.FromString(file.read_bytes())
            if file.name == str(report.number):
                reports[report.number] = report
    return dict(sorted(reports.items()))


def _heads(reward_model: RewardModel) -> list[RewardModelHead]:
    return [
        RewardModelHead(
            aspect=aspect,
            auc=quality.auc,
            accuracy=quality.accuracy,
            ece=_NAN if quality.ece is None else quality.ece,
            judgements=quality.votes + quality.preferences + quality.ratings,
        )
        for aspect, quality in reward_model.heads.items()
    ]


def _event(releases: Releases, round_number: int) -> PolicyEvent | None:
    """The event that a round ended with."""
    events = [event for event in map(releases.event, releases.versions()) if event is not None]
    return next((event for event in events if event.metrics.get("round") == round_number), None)


def _end(report: RoundReport, reason: str, event: PolicyEvent | None) -> None:
    report.reason = reason
    if event is None:
        report.ended_at.GetCurrentTime()
    else:
        report.version, report.outcome = event.version, event.state
        report.ended_at.CopyFrom(event.time)
