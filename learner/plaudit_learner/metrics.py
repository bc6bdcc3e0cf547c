"""Prometheus metrics of the learner. Label values are bounded: versions, stages and the gate's checks, never users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge

from plaudit.events import ERASURES, FEEDBACK, INTERACTIONS
from plaudit_learner.experience.store import Tally

if TYPE_CHECKING:
    from plaudit_learner.canary.evidence import Evidence
    from plaudit_learner.gate.judge import Check

STAGES = ("starting", "waiting", "rewarding", "improving", "gating", "publishing")


class LearnerMetrics:
    """One set a learner."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.stage = Enum("plaudit_learner_stage", "What the learner does now.", states=STAGES, registry=registry)
        self.lag = Gauge(
            "plaudit_event_log_lag", "Records in the event log that the learner has not taken in.", registry=registry
        )
        self.records = Counter("plaudit_learner_records", "Records taken in.", registry=registry)
        self.dead_letters = Counter(
            "plaudit_dead_letters",
            "Records put aside because they cannot be used, by topic.",
            ["topic"],
            registry=registry,
        )
        for topic in (INTERACTIONS, FEEDBACK, ERASURES):
            self.dead_letters.labels(topic)  # 0 until there is one, so that an alert sees the first
        self.votes = Gauge(
            "plaudit_votes",
            "Thumbs that stand, each counted once, by version voted on and thumb.",
            ["policy_version", "thumb"],
            registry=registry,
        )
        self.approval = Gauge(
            "plaudit_approval_ratio",
            "Thumbs-up ÷ all thumbs that stand on a version's replies.",
            ["policy_version"],
            registry=registry,
        )
        self.policy_state = Gauge(
            "plaudit_policy_state", "1 for where a version stands.", ["policy_version", "state"], registry=registry
        )
        self.canary_share = Gauge(
            "plaudit_canary_share", "Share of conversations that get the canary.", ["policy_version"], registry=registry
        )
        self.canary_votes = Gauge(
            "plaudit_canary_votes", "Votes that count in the canary's trial, by side.", ["side"], registry=registry
        )
        self.canary_approval = Gauge(
            "plaudit_canary_approval_ratio", "Mean of these votes, 0 to 1, by side.", ["side"], registry=registry
        )
        self.canary_replies = Gauge(
            "plaudit_canary_replies", "Replies drawn in the canary's trial, by side.", ["side"], registry=registry
        )
        self.canary_harm = Gauge(
            "plaudit_canary_harm_nats",
            "Evidence that the canary is liked less: log of the bettors' capital.",
            registry=registry,
        )
        self.canary_decisions = Counter(
            "plaudit_canary_decisions", "Trials ended by the judge, by decision.", ["decision"], registry=registry
        )
        self.rounds = Counter("plaudit_rounds", "Rounds ended, by outcome.", ["outcome"], registry=registry)
        self.reward_model_auc = Gauge(
            "plaudit_reward_model_auc", "Area under the ROC curve on votes held out by prompt.", registry=registry
        )
        self.reward_model_accuracy = Gauge(
            "plaudit_reward_model_accuracy", "Share of votes held out by prompt that it predicts.", registry=registry
        )
        self.ppo_reward = Gauge(
            "plaudit_ppo_reward", "Mean reward of the last update's rollouts, in reference sds.", registry=registry
        )
        self.ppo_kl = Gauge(
            "plaudit_ppo_kl", "KL to the reference per reply, last update's rollouts, in nats.", registry=registry
        )
        self.ppo_entropy = Gauge(
            "plaudit_ppo_entropy", "Entropy per token, last update's rollouts, in nats.", registry=registry
        )
        self.ppo_reply_length = Gauge(
            "plaudit_ppo_reply_length", "Mean length of the last update's rollouts, in tokens.", registry=registry
        )

        self.gate = Gauge(
            "plaudit_gate",
            "What the gate measured of the last candidate: its own figure, what that was compared with, the bound.",
            ["measure", "figure"],
            registry=registry,
        )
        self.gate_vetoes = Counter(
            "plaudit_gate_vetoes", "Candidates that broke a check, by measure.", ["measure"], registry=registry
        )

    def gated(self, checks: Sequence[Check]) -> None:
        """Say what the gate found of a candidate."""
        for check in checks:
            self.gate.labels(check.measure, "candidate").set(check.candidate)
            self.gate.labels(check.measure, "reference").set(check.reference)
            self.gate.labels(check.measure, "bound").set(check.bound)
            self.gate_vetoes.labels(check.measure).inc(not check.kept)

    def stands(self, policies: Iterable[tuple[str, str]], canary: str | None, share: float) -> None:
        """Say where each version stands, and which share of conversations the canary is to get."""
        self.policy_state.clear()
        self.canary_share.clear()
        for version, state in policies:
            self.policy_state.labels(version, state).set(1)
        if canary is not None:
            self.canary_share.labels(canary).set(share)

    def tried(self, evidence: Evidence, harm: float) -> None:
        """Say what was seen of the canary and, beside it, of the stable version."""
        for side, arm in (("canary", evidence.canary), ("stable", evidence.stable)):
            self.canary_votes.labels(side).set(arm.votes)
            self.canary_approval.labels(side).set(arm.approval)
            self.canary_replies.labels(side).set(arm.replies)
        self.canary_harm.set(harm)

    def count_letter(self, topic: str) -> None:
        """Say that a record of `topic` was put aside."""
        self.dead_letters.labels(topic).inc()

    def tally(self, tallies: Mapping[str, Tally]) -> None:
        """Say how each version is liked, and of no other."""
        self.votes.clear()
        self.approval.clear()
        for version, tally in tallies.items():
            self.votes.labels(version, "up").set(tally.up)
            self.votes.labels(version, "down").set(tally.down)
            total = tally.up + tally.down
            if total:
                self.approval.labels(version).set(tally.up / total)
