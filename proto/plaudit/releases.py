"""Where each policy version stands: a pure fold of the policy events, the same in every program.

             gate refuses
    (made) ───────────────▶ REJECTED
       │ gate passes
       │               ┌─┐ another share
       ▼               ▼ │           judge, operator
   CANDIDATE ────────▶ CANARY ───────────────────────────▶ STABLE ◀────┐
       │                │ ▲                                 ▲ │        │
       └────────────────┼─┼──────── operator ───────────────┘ │        │ operator
        judge, operator │ │ operator                          │        │
                        ▼ │                                   │        │
                    ROLLED_BACK ◀─────────── operator ────────┘        │
                        └──────────────────────────────────────────────┘

A version may be made CANARY or STABLE at once. CANARY or STABLE, overtaken by another version: (RETIRED).

One event is one step, so no step is ever half done, and only the last event of a version counts, so compaction loses
nothing. Two versions are in service at most, and which they are is derived:

stable   the one whose STABLE event stands last in the log. Rolling it back needs no second event: the one promoted
         before it is stable again. v0, the base model, is stable from before the first event, cannot be rolled back,
         and is never a canary.
canary   the one whose CANARY event stands last, if it stands after the stable version's event. So a promotion is what
         everybody gets, the canary's conversations too, and a newer canary takes the place of an older one. Rolling
         back the stable version leaves the canary where it is. Repeating the event with another share is how the share
         is changed.

RETIRED is what a version is whose STABLE or CANARY event was overtaken; it is never written. (A canary overtaken by a
version that is then rolled back would be the canary again, as the version promoted before is stable again. The learner
writes ROLLED_BACK of a canary that it finds overtaken, and then it stays out.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import Policy, PolicyState

BASE = "v0"
IMPORTED = "imported"
"""Stands for the version of replies that no version of this deployment sampled: people's judgements of them count, and
nothing else is learnt from them. It is no version, and never becomes one."""
CANARY_METRICS = "canary_"
"""What a canary's metrics begin with in its events; those of the gate do not."""
_NAME = re.compile(r"v(0|[1-9][0-9]{0,8})")


def number(version: str) -> int:
    """`v12` → 12. Raises ValueError if it is no name of a version."""
    match = _NAME.fullmatch(version)
    if match is None:
        raise ValueError(f"{version[:32]!r} is no name of a version; they are v0, v1, v2, …")
    return int(match[1])


_STEPS: dict[PolicyState.ValueType | None, set[PolicyState.ValueType]] = {
    None: set(),  # what nobody has announced is not an operator's to promote
    PolicyState.POLICY_STATE_CANDIDATE: {PolicyState.POLICY_STATE_CANARY, PolicyState.POLICY_STATE_STABLE},
    PolicyState.POLICY_STATE_CANARY: {
        PolicyState.POLICY_STATE_CANARY,
        PolicyState.POLICY_STATE_STABLE,
        PolicyState.POLICY_STATE_ROLLED_BACK,
    },
    PolicyState.POLICY_STATE_STABLE: {PolicyState.POLICY_STATE_STABLE, PolicyState.POLICY_STATE_ROLLED_BACK},
    PolicyState.POLICY_STATE_ROLLED_BACK: {PolicyState.POLICY_STATE_CANARY, PolicyState.POLICY_STATE_STABLE},
    PolicyState.POLICY_STATE_REJECTED: set(),
}


@dataclass(slots=True)
class Releases:
    """The fold. `apply` the events in the order of the log."""

    _last: dict[str, tuple[int, PolicyEvent]] = field(default_factory=dict)
    changes: int = field(default=0, compare=False)
    """How many events were applied."""
    # What follows from all events is asked for with each version; both are None until it is asked for again.
    _promoted: list[str] | None = field(default=None, compare=False, repr=False)
    _on_trial: tuple[str | None] | None = field(default=None, compare=False, repr=False)

    def apply(self, event: PolicyEvent, offset: int) -> None:
        """Take in the next event. The last one of a version wins; a version is whatever its last event says.

        Raises ValueError if it names no version; nothing is changed then.
        """
        number(event.version)
        self._last[event.version] = (offset, event)
        self.changes += 1
        self._promoted = self._on_trial = None

    def read(self, value: bytes, offset: int) -> PolicyEvent:
        """Apply a record's value; returns the event. Raises ValueError if it is none, or names no version."""
        try:
            event = PolicyEvent.FromString(value)
        except DecodeError as error:
            raise ValueError(f"not a policy event: {error}") from None
        self.apply(event, offset)
        return event

    @property
    def empty(self) -> bool:
        """Whether no event was applied yet."""
        return not self._last

    @property
    def stable(self) -> str:
        """The version that new requests are to get."""
        return self.promoted()[-1]

    @property
    def previous(self) -> str:
        """The version that is stable again if the stable one is rolled back; v0 if there is none before it."""
        return self.promoted()[-2:][0]

    @property
    def canary(self) -> str | None:
        """The version that a share of conversations is to get; None if there is none."""
        if self._on_trial is None:
            last = max(self.canaries(), key=self.offset, default=None)
            self._on_trial = (last if last is not None and self.offset(last) > self.offset(self.stable) else None,)
        return self._on_trial[0]

    def canaries(self) -> list[str]:
        """Versions whose last event made them a canary, those included that were overtaken; oldest first."""
        return [
            version
            for version in self.versions()
            if version != BASE and self._last[version][1].state == PolicyState.POLICY_STATE_CANARY
        ]

    def share(self, version: str) -> float:
        """The share of conversations that `version` is to get as the canary, 0 to 1; 0 if it is not the canary."""
        event = self.event(version)
        if event is None or version != self.canary or not event.share > 0:  # NaN too
            return 0.0
        return min(event.share, 1.0)

    def promoted(self) -> list[str]:
        """Versions whose last event promoted them, in the order of the log; v0 before all of them until it has one."""
        if self._promoted is None:
            promoted = sorted(
                (offset, version)
                for version, (offset, event) in self._last.items()
                if event.state == PolicyState.POLICY_STATE_STABLE
            )
            versions = [version for _, version in promoted]
            self._promoted = versions if BASE in versions else [BASE, *versions]
        return self._promoted

    def offset(self, version: str) -> int:
        """Where the last event of `version` stands in the log; -1 if there is none."""
        return self._last[version][0] if version in self._last else -1

    def event(self, version: str) -> PolicyEvent | None:
        """The last event of `version`; None if there is none."""
        entry = self._last.get(version)
        return entry[1] if entry else None

    def reference(self, version: str) -> str:
        """What learning on `version` starts from and measures KL against: an instruction-tuned version, or v0."""
        event = self.event(version)
        return (event.reference if event else "") or BASE

    def versions(self) -> list[str]:
        """All versions, v0 included, oldest first."""
        return sorted({BASE, *self._last}, key=number)

    def policy(self, version: str) -> Policy | None:
        """What people are shown of `version`; None if there is no such version."""
        event = self.event(version)
        if event is None and version != BASE:
            return None
        state = event.state if event else PolicyState.POLICY_STATE_STABLE
        in_service = {PolicyState.POLICY_STATE_STABLE: self.stable, PolicyState.POLICY_STATE_CANARY: self.canary}
        if version != in_service.get(state, version):
            state = PolicyState.POLICY_STATE_RETIRED
        if event is None:
            return Policy(version=version, state=state, reason="the base model", reference=BASE)
        return Policy(
            version=version,
            parent=event.parent,
            state=state,
            reason=event.reason,
            changed_at=event.time,
            metrics=event.metrics,
            checks=event.checks,
            reference=self.reference(version),
            share=self.share(version),
        )

    def refusal(self, version: str, state: PolicyState.ValueType) -> str | None:
        """Why `version` cannot step to `state`, in words; None if it can."""
        event = self.event(version)
        current = PolicyState.POLICY_STATE_STABLE if version == BASE else (event.state if event else None)
        if version == BASE and state == PolicyState.POLICY_STATE_ROLLED_BACK:
            return "v0 is the base model: there is nothing before it to roll back to; promote another version instead"
        if state in _STEPS[current]:
            return None
        policy = self.policy(version)
        here = "new" if policy is None else word(policy.state)  # retired, too
        return f"{version} is {here}, and what is {here} cannot become {word(state)}"


def label(state: PolicyState.ValueType) -> str:
    """Its name in labels and fields: "stable", "rolled_back"."""
    return PolicyState.Name(state).removeprefix("POLICY_STATE_").lower()


def word(state: PolicyState.ValueType) -> str:
    """Its name for people: "stable", "rolled back"."""
    return label(state).replace("_", " ")
