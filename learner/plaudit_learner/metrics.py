"""Prometheus metrics of the learner; docs/metrics.md is made from this module.

Label values are bounded, and never name a user: stages, the gate's checks, aspects, and of versions those in service
and the `_SHOWN` newest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, ProcessCollector

import plaudit
from plaudit.events import ERASURES, FEEDBACK, INTERACTIONS
from plaudit.releases import Releases, label, number
from plaudit.wilson import wilson
from plaudit_learner.experience.store import Tally

if TYPE_CHECKING:
    from plaudit_learner.canary.evidence import Evidence
    from plaudit_learner.gate.judge import Check
    from plaudit_learner.ppo.improve import IterationMetrics
    from plaudit_learner.reward.model import RewardModel

_SHOWN = 16
_CAUGHT_UP = 1000  # records behind, at most: a batch; more are always coming
_ROUND = (60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 86400.0)

STAGES = ("starting", "waiting", "rewarding", "improving", "gating", "publishing")


class LearnerMetrics:
    """One set a learner."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._live: set[str] = set()
        ProcessCollector(registry=registry)
        self.build_info = Gauge(
            "plaudit_build_info",
            "1; which program this is, and the directory's name of the base model.",
            ["version", "program", "engine", "model"],
            registry=registry,
        )
        self.progressed_at = Gauge(
            "plaudit_learner_progress_timestamp_seconds",
            "When it last got on: a turn of its loop, a stage or an update of the policy that ended.",
            registry=registry,
        )
        self.caught_up_at = Gauge(
            "plaudit_learner_caught_up_timestamp_seconds",
            "When it was last up with the event log, or less than a batch of 1000 records behind.",
            registry=registry,
        )
        self.checkpoint_at = Gauge(
            "plaudit_learner_checkpoint_timestamp_seconds",
            "When the running round was last written down; 0 if there is nothing to go on from.",
            registry=registry,
        )
        self.event_log_failures = Counter(
            "plaudit_event_log_failures",
            "Reads of the event log that failed; they are tried again.",
            registry=registry,
        )
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
        self.approval_low = Gauge(
            "plaudit_approval_ratio_low",
            "Lower end of its 95 % interval (Wilson).",
            ["policy_version"],
            registry=registry,
        )
        self.approval_high = Gauge(
            "plaudit_approval_ratio_high",
            "Upper end of its 95 % interval (Wilson).",
            ["policy_version"],
            registry=registry,
        )
        self.policy_info = Gauge(
            "plaudit_policy_info",
            "1; the version that this one had to beat.",
            ["policy_version", "parent"],
            registry=registry,
        )
        self.policy_reward_gain = Gauge(
            "plaudit_policy_reward_gain",
            "How much better than its parent the gate found it by the reward model, in reference sds.",
            ["policy_version"],
            registry=registry,
        )
        self.policy_state = Gauge(
            "plaudit_policy_state", "1 for where a version stands.", ["policy_version", "state"], registry=registry
        )
        self.canary_share = Gauge(
            "plaudit_canary_share", "Share of conversations that get the canary.", ["policy_version"], registry=registry
        )
        self.canary_since = Gauge(
            "plaudit_canary_started_timestamp_seconds",
            "When the running trial began; 0 if votes decide about nothing.",
            registry=registry,
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
        for decision in ("promote", "roll back"):
            self.canary_decisions.labels(decision)
        self.new_votes = Gauge(
            "plaudit_new_votes", "Votes that stand and that no round has used yet.", registry=registry
        )
        self.votes_per_round = Gauge("plaudit_votes_per_round", "How many of them begin a round.", registry=registry)
        self.rounds = Counter("plaudit_rounds", "Rounds ended, by outcome.", ["outcome"], registry=registry)
        for outcome in ("canary", "stable", "rejected"):
            self.rounds.labels(outcome)
        self.round_duration = Histogram(
            "plaudit_round_duration_seconds",
            "From a round's begin to its end, the time between included if it was cut off.",
            buckets=_ROUND,
            registry=registry,
        )
        self.reward_model_auc = Gauge(
            "plaudit_reward_model_auc",
            "Probability of putting the better of two replies first, on votes held out by prompt, by aspect: AUC of "
            "thumbs, concordance of ratings, share of pairs right, averaged by weight; NaN if it cannot be told.",
            ["aspect"],
            registry=registry,
        )
        self.reward_model_accuracy = Gauge(
            "plaudit_reward_model_accuracy",
            "Share of votes held out by prompt that it predicts, by aspect.",
            ["aspect"],
            registry=registry,
        )
        self.reward_model_ece = Gauge(
            "plaudit_reward_model_ece",
            "Expected calibration error on votes held out by prompt, by aspect.",
            ["aspect"],
            registry=registry,
        )
        self.reward_model_judgements = Gauge(
            "plaudit_reward_model_judgements",
            "Judgements that it was fitted on, by aspect.",
            ["aspect"],
            registry=registry,
        )
        self.ppo_updates = Counter("plaudit_ppo_updates", "Updates of the policy that ended.", registry=registry)
        self.ppo_reward = Gauge(
            "plaudit_ppo_reward", "Mean reward of the last update's rollouts, in reference sds.", registry=registry
        )
        self.ppo_kl = Gauge(
            "plaudit_ppo_kl", "KL to the reference per reply, last update's rollouts, in nats.", registry=registry
        )
        self.ppo_kl_budget = Gauge(
            "plaudit_ppo_kl_budget", "What that KL may be at most, in nats: the gate's bound.", registry=registry
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
        self.progressed_at.set_to_current_time()

    def built(self, model: str, votes_per_round: int) -> None:
        """Say what runs here."""
        self.build_info.labels(plaudit.__version__, "learner", "", model).set(1)
        self.votes_per_round.set(votes_per_round)

    def took_in(self, records: int, lag: int, new_votes: int) -> None:
        """Say that so many records were taken in, how many are left, and how many votes wait for a round."""
        self.records.inc(records)
        self.lag.set(lag)
        self.new_votes.set(new_votes)
        if lag < _CAUGHT_UP:
            self.caught_up_at.set_to_current_time()
        self.progressed_at.set_to_current_time()

    def fitted(self, reward_model: RewardModel) -> None:
        """Say how good a reward model is, head by head."""
        for metric in (self.reward_model_auc, self.reward_model_accuracy, self.reward_model_ece):
            metric.clear()
        self.reward_model_judgements.clear()
        for aspect, head in reward_model.heads.items():
            self.reward_model_auc.labels(aspect).set(head.discrimination)
            self.reward_model_accuracy.labels(aspect).set(head.accuracy)
            if head.ece is not None:
                self.reward_model_ece.labels(aspect).set(head.ece)
            self.reward_model_judgements.labels(aspect).set(head.votes + head.preferences + head.ratings)
        self.progressed_at.set_to_current_time()

    def updated(self, update: IterationMetrics) -> None:
        """Say what an update of the policy came to."""
        self.ppo_updates.inc()
        self.ppo_reward.set(update.reward)
        self.ppo_kl.set(update.kl)
        self.ppo_entropy.set(update.entropy)
        self.ppo_reply_length.set(update.length)
        self.progressed_at.set_to_current_time()

    def round_ended(self, outcome: str, seconds: float) -> None:
        """Say what came of a round."""
        self.rounds.labels(outcome).inc()
        self.round_duration.observe(seconds)

    def stands(self, releases: Releases, trial: bool) -> None:
        """Say where each version stands, and which share of conversations the canary is to get.

        trial: whether votes are to decide about it.
        """
        for metric in (self.policy_state, self.policy_info, self.policy_reward_gain, self.canary_share):
            metric.clear()
        self._live = {releases.stable, releases.previous, *filter(None, [releases.canary])}
        for version in self._shown(releases.versions()):
            policy, event = releases.policy(version), releases.event(version)
            if policy is not None:
                state = label(policy.state)
                self.policy_state.labels(version, state).set(1)
            if event is not None and event.parent:
                self.policy_info.labels(version, event.parent).set(1)
            if event is not None and "reward_gain" in event.metrics:
                self.policy_reward_gain.labels(version).set(event.metrics["reward_gain"])
        began = 0.0
        if releases.canary is not None:
            self.canary_share.labels(releases.canary).set(releases.share(releases.canary))
            event = releases.event(releases.canary)
            began = event.time.ToMicroseconds() / 1e6 if trial and event is not None else 0.0
        self.canary_since.set(began)

    def _shown(self, versions: Sequence[str]) -> list[str]:
        newest = sorted(versions, key=number)[-_SHOWN:]
        return [version for version in versions if version in self._live or version in newest]

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
        for metric in (self.votes, self.approval, self.approval_low, self.approval_high):
            metric.clear()
        for version in self._shown(list(tallies)):
            up, down = tallies[version].up, tallies[version].down
            self.votes.labels(version, "up").set(up)
            self.votes.labels(version, "down").set(down)
            total = up + down
            if total:
                low, high = wilson(up, total)
                self.approval.labels(version).set(up / total)
                self.approval_low.labels(version).set(low)
                self.approval_high.labels(version).set(high)
