"""What the SDK gives of the loop: votes, reward model, PPO, releases, as plain immutable values. Times are UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from plaudit.v1 import loop_pb2
from plaudit_client.types import state_word


@dataclass(frozen=True, slots=True)
class Approval:
    """How one version is liked."""

    policy_version: str
    up: int
    """Thumbs-up that stand."""
    down: int
    low: float
    """Lower end of the 95 % interval of up ÷ (up + down)."""
    high: float

    @property
    def rate(self) -> float | None:
        """Thumbs-up ÷ all thumbs; None without any."""
        return self.up / (self.up + self.down) if self.up + self.down else None


@dataclass(frozen=True, slots=True)
class VoteBucket:
    """Votes on one version's replies that were made in one span of time."""

    start: datetime
    seconds: int
    """How long it is; the same for all buckets of a report."""
    policy_version: str
    up: int
    down: int


@dataclass(frozen=True, slots=True)
class LearnerReport:
    """What the learner does, and what it has counted."""

    time: datetime | None
    """When it said so, by its own clock; every half minute at least while it lives."""
    stage: str
    """starting, waiting, rewarding, improving, gating or publishing."""
    stage_since: datetime | None
    lag: int
    """Records in the event log that it has not taken in."""
    new_votes: int
    """Votes that no round has used yet."""
    votes_per_round: int
    """How many of them begin a round."""
    approvals: tuple[Approval, ...]
    """By version, the oldest first."""
    buckets: tuple[VoteBucket, ...]
    """The oldest first; spans without a vote are left out."""

    @classmethod
    def from_proto(cls, report: loop_pb2.LearnerReport) -> LearnerReport:
        """As the server tells it."""
        return cls(
            time=_time(report.time) if report.HasField("time") else None,
            stage=report.stage,
            stage_since=_time(report.stage_since) if report.HasField("stage_since") else None,
            lag=report.lag,
            new_votes=report.new_votes,
            votes_per_round=report.votes_per_round,
            approvals=tuple(Approval(a.policy_version, a.up, a.down, a.low, a.high) for a in report.approvals),
            buckets=tuple(
                VoteBucket(_time(b.start), b.seconds, b.policy_version, b.up, b.down) for b in report.buckets
            ),
        )


@dataclass(frozen=True, slots=True)
class RewardModelHead:
    """How good one head of the reward model is, on votes held out by prompt."""

    aspect: str
    auc: float
    """Area under the ROC curve; NaN if it cannot be told."""
    accuracy: float
    """Share of held-out judgements that it predicts."""
    ece: float
    """Expected calibration error; NaN if it cannot be told."""
    judgements: int


@dataclass(frozen=True, slots=True)
class PpoUpdate:
    """One update of the policy."""

    number: int
    """1, 2, …"""
    reward: float
    """Mean reward of its rollouts, in standard deviations under the reference policy."""
    kl: float
    """To the reference, in nats a reply."""
    entropy: float
    """Nats a token."""
    reply_length: float
    """Mean, in tokens."""
    time: datetime
    """When it ended."""


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One round of learning, as far as it has come."""

    number: int
    started_at: datetime | None
    ended_at: datetime | None
    """None while it runs."""
    parent: str
    """The version that it is to be better than."""
    reference: str
    """The version that KL is measured against."""
    votes: int
    """Votes that it learns from."""
    heads: tuple[RewardModelHead, ...]
    """Empty until the reward model is fitted."""
    updates: tuple[PpoUpdate, ...]
    updates_planned: int
    """How many there are to be at most."""
    kl_budget: float
    """In nats a reply."""
    version: str
    """What came of it; empty: none, or none yet."""
    outcome: str
    """Where that version stood when the round ended, as `Policy.state`; empty without a version."""
    reason: str
    """Why the round ended as it did."""

    @classmethod
    def from_proto(cls, report: loop_pb2.RoundReport) -> RoundReport:
        """As the server tells it."""
        return cls(
            number=report.number,
            started_at=_time(report.started_at) if report.HasField("started_at") else None,
            ended_at=_time(report.ended_at) if report.HasField("ended_at") else None,
            parent=report.parent,
            reference=report.reference,
            votes=report.votes,
            heads=tuple(RewardModelHead(h.aspect, h.auc, h.accuracy, h.ece, h.judgements) for h in report.heads),
            updates=tuple(
                PpoUpdate(u.number, u.reward, u.kl, u.entropy, u.reply_length, _time(u.time)) for u in report.updates
            ),
            updates_planned=report.updates_planned,
            kl_budget=report.kl_budget,
            version=report.version,
            outcome=state_word(report.outcome) if report.version else "",
            reason=report.reason,
        )


@dataclass(frozen=True, slots=True)
class ReleaseStep:
    """One step in the life of one version."""

    policy_version: str
    parent: str
    state: str
    """Where it stood from then on, as `Policy.state`."""
    reason: str
    actor: str
    """learner or operator."""
    time: datetime
    share: float
    """In state canary: the share of conversations that got it."""


@dataclass(frozen=True, slots=True)
class Loop:
    """One picture of the loop."""

    learner: LearnerReport | None
    """None until it has said something."""
    rounds: tuple[RoundReport, ...]
    """The oldest first; the last 100."""
    releases: tuple[ReleaseStep, ...]
    """Every step of every version, the oldest first; the last 500."""

    @classmethod
    def from_proto(cls, loop: loop_pb2.Loop) -> Loop:
        """As the server tells it."""
        return cls(
            learner=LearnerReport.from_proto(loop.learner) if loop.HasField("learner") else None,
            rounds=tuple(RoundReport.from_proto(report) for report in loop.rounds),
            releases=tuple(
                ReleaseStep(s.policy_version, s.parent, state_word(s.state), s.reason, s.actor, _time(s.time), s.share)
                for s in loop.releases
            ),
        )


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)
