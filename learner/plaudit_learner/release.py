"""From an improved policy to a version that servers serve: named once, stored, then announced."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from plaudit import tracing
from plaudit.artifacts import PolicyStore
from plaudit.releases import Releases, number
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import GateCheck, PolicyState
from plaudit_learner.gate.judge import Verdict
from plaudit_learner.policy import Policy

log = logging.getLogger(__name__)


class Publisher:
    """Writes the policy store first and the event log last: what is announced is there."""

    def __init__(self, store: PolicyStore, announce: Callable[[PolicyEvent], object], base_model_sha256: str) -> None:
        """announce: appends to the policy topic; raises EventLogUnavailable."""
        self._store = store
        self._append = announce
        self._base_model_sha256 = base_model_sha256

    def publish(
        self,
        policy: Policy,
        verdict: Verdict,
        releases: Releases,
        *,
        parent: str,
        window: Mapping[str, int],
        metrics: Mapping[str, float],
        actor: str = "learner",
        created_by: str = "plaudit-learner",
        reason: str = "passed the gate",
        reference: str | None,
        share: float = 0.0,
        traceparent: str = "",
    ) -> PolicyEvent:
        """Announce the policy as the next version: in service if the verdict says so, rejected with its reasons if not.

        actor: who decides that it is put in service; created_by: which program made it; reason: why.
        share: of conversations that get it as the canary; 0: it is stable at once.
        traceparent: the span of what made it.
        reference: the version that KL was measured against; None if the new version is itself a reference.
        The weights of what was rejected are not stored: nobody can serve them by mistake.
        Raises ArtifactError or EventLogUnavailable; what was announced by then is whole. Raises ValueError if it passed
        with a metric that is not finite; nothing is stored or announced then.
        """
        version = self._next_name(releases)
        event = PolicyEvent(schema_version=1, version=version, parent=parent, actor=actor, metrics=metrics)
        event.reference = reference or version
        event.traceparent = traceparent
        event.checks.extend(
            GateCheck(
                measure=check.measure,
                candidate=check.candidate,
                reference=check.reference,
                bound=check.bound,
                upper=check.upper,
                kept=check.kept,
            )
            for check in verdict.checks
        )
        if not verdict.passed:
            self._announce(event, PolicyState.POLICY_STATE_REJECTED, "; ".join(verdict.reasons))
            return event
        with tracing.span("publish"), tempfile.TemporaryDirectory() as directory:
            policy.save_adapter(Path(directory))
            _, event.manifest_sha256 = self._store.publish(
                version,
                Path(directory),
                parent=parent,
                reference=event.reference,
                base_model_sha256=self._base_model_sha256,
                window=dict(window),
                metrics=dict(metrics),
                created_by=created_by,
            )
        # One event, so that no kill can leave a version halfway (docs/decisions/0001).
        event.share = share
        self._announce(event, PolicyState.POLICY_STATE_CANARY if share else PolicyState.POLICY_STATE_STABLE, reason)
        return event

    def _announce(self, event: PolicyEvent, state: PolicyState.ValueType, reason: str) -> None:
        event.state = state
        event.reason = reason
        event.time.GetCurrentTime()
        self._append(event)

    def _next_name(self, releases: Releases) -> str:
        """One more than any name ever used, by an announced version or by a publication that was cut off."""
        used = [*releases.versions(), *self._store.versions()]
        return f"v{1 + max(map(number, used))}"
