"""Watches the canary's votes come in, and announces what becomes of it: one event, then it has become so.

    votes ──▶ weigh ──▶ judge ─┬─ go on ─────▶ (now and then) CANARY again, with its tally
                               ├─ promote ───▶ STABLE
                               └─ roll back ─▶ ROLLED_BACK

Nothing is kept here: what was decided follows from the event log and the experience store, so a learner that is killed
between a decision and its event decides the same again. What an operator says meanwhile always holds
(`experience/policies.py`).
"""

from __future__ import annotations

import logging

from plaudit import logs, tracing
from plaudit.releases import CANARY_METRICS, Releases, label
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_learner.canary.evidence import Evidence, weigh
from plaudit_learner.canary.judge import Decision, Rules, judge
from plaudit_learner.config import LearnerSettings
from plaudit_learner.experience.intake import Intake
from plaudit_learner.experience.on_trial import OnTrial, on_trial
from plaudit_learner.experience.retention import most_on_trial
from plaudit_learner.experience.store import Experience
from plaudit_learner.metrics import LearnerMetrics

log = logging.getLogger(__name__)

_STATES = {
    Decision.PROMOTE: PolicyState.POLICY_STATE_STABLE,
    Decision.ROLL_BACK: PolicyState.POLICY_STATE_ROLLED_BACK,
}


class Reviewer:
    """Part of the one active learner."""

    def __init__(self, settings: LearnerSettings, store: Experience, metrics: LearnerMetrics) -> None:
        self._aspect = settings.aspect
        self._rules = Rules(
            least_votes=settings.canary_least_votes,
            most_votes=settings.canary_most_votes,
            most_replies=settings.canary_most_replies,
            most_kept=most_on_trial(settings.window),
        )
        self._store = store
        self._metrics = metrics
        self._seen: tuple[object, ...] = ()
        self._trying = ""

    def review(self, intake: Intake) -> None:
        """Decide by what was taken in so far. Raises EventLogUnavailable; what was announced by then holds."""
        releases = intake.releases
        # Nothing new since the last look: nothing new to say. In a process that starts, everything is new.
        seen = (self._store.changes, releases.stable, releases.canary, *map(releases.offset, releases.versions()))
        if seen == self._seen:
            return
        self._withdraw_overtaken(intake)
        trial = on_trial(releases)
        self._metrics.stands(releases, trial is not None)
        if trial is not None:
            self._try(trial, intake)
        self._seen = seen

    def _withdraw_overtaken(self, intake: Intake) -> None:
        for version in intake.releases.canaries():
            event = intake.releases.event(version)
            if version != intake.releases.canary and event is not None:
                later = intake.releases.canary or intake.releases.stable
                self._announce(
                    event, PolicyState.POLICY_STATE_ROLLED_BACK, f"{later} took its place before it was judged", intake
                )

    def _try(self, trial: OnTrial, intake: Intake) -> None:
        releases, version = intake.releases, trial.canary
        event = releases.event(version)
        assert event is not None, "a canary has an event"
        if version != self._trying:
            self._trying = version
            share = releases.share(version)
            log.info("%s is on trial at %.3g of conversations; no round begins until votes decide", version, share)
        evidence = self._weigh(trial, releases.share(version))
        judgement = judge(evidence, self._rules)
        self._metrics.tried(evidence, judgement.log_capital)
        event = PolicyEvent.FromString(event.SerializeToString())
        for name, figure in _tally(evidence).items():
            event.metrics[CANARY_METRICS + name] = figure
        state = _STATES.get(judgement.decision)
        if state is None:
            self._tell(event, releases, intake)
            return
        told = logs.fields(
            step=label(state), policy_version=version, actor="learner", trace_id=tracing.trace_of(event.traceparent)
        )
        log.info("canary %s: %s, %s", version, judgement.decision, judgement.reason, extra=told)
        with tracing.span(
            "canary decision",
            links=[event.traceparent],  # of the round that made it, which its events go on naming
            attributes={
                "plaudit.policy_version": version,
                "plaudit.decision": judgement.decision.value,
                "plaudit.reason": judgement.reason,
            },
        ):
            self._announce(event, state, judgement.reason, intake)
        self._metrics.canary_decisions.labels(judgement.decision.value).inc()

    def _weigh(self, trial: OnTrial, share: float) -> Evidence:
        """All that is on trial: the store keeps it until the trial is over."""
        since, most = trial.since, self._rules.most_kept
        return weigh(
            self._store.exposures(trial.canary, since, most),
            self._store.exposures(trial.stable, since, most),
            self._store.ballots(self._aspect, (trial.canary, trial.stable), since),
            share,
            most_votes=self._rules.most_votes,
        )

    def _tell(self, event: PolicyEvent, releases: Releases, intake: Intake) -> None:
        """Let people see how the trial goes, whenever twice as many votes have come in. It stands where it stood."""
        before = releases.event(event.version)
        told = before.metrics.get(CANARY_METRICS + "votes", 0.0) if before is not None else 0.0
        if event.metrics[CANARY_METRICS + "votes"] >= max(self._rules.least_votes, 2 * told):
            intake.announce(event)
            log.info(
                "canary %s: approval %.2f of %.0f votes, stable %.2f of %.0f",
                event.version,
                *(event.metrics[CANARY_METRICS + n] for n in ("approval", "votes", "stable_approval", "stable_votes")),
            )

    def _announce(self, event: PolicyEvent, state: PolicyState.ValueType, reason: str, intake: Intake) -> None:
        after = PolicyEvent.FromString(event.SerializeToString())
        after.state, after.reason, after.actor, after.share = state, reason, "learner", 0.0
        after.time.GetCurrentTime()
        intake.announce(after)


def _tally(evidence: Evidence) -> dict[str, float]:
    figures: dict[str, float] = {}
    for side, arm in (("", evidence.canary), ("stable_", evidence.stable)):
        figures |= {
            f"{side}votes": arm.votes,
            f"{side}approval": arm.approval,
            f"{side}replies": arm.replies,
            f"{side}voted": arm.voted,
            f"{side}errors": arm.errors,
            f"{side}seconds": arm.seconds,
        }
    return figures
