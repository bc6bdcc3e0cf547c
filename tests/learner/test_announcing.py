"""What the learner announces stands as if it had come when it was decided; an operator's words stand behind it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from plaudit.events import POLICIES, EventLogUnavailable, Record, from_beginning
from plaudit.events.sqlite import SqliteLog
from plaudit.releases import Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_learner.experience.policies import Policies
from plaudit_learner.experience.store import Experience

CANARY, STABLE = PolicyState.POLICY_STATE_CANARY, PolicyState.POLICY_STATE_STABLE
ROLLED_BACK = PolicyState.POLICY_STATE_ROLLED_BACK


class Troubled(SqliteLog):
    """A log whose appends are cut off now and then, as Kafka's may be: some records are there; and not its only user's.

    While `draw` is set, an operator speaks before and after the appends.
    """

    draw: random.Random | None = None
    words = 0
    """How many of the operator's are said."""

    def append(self, records: Sequence[Record]) -> None:
        if self.draw is None:
            super().append(records)
            return
        self.operator()
        there = self.draw.choice([len(records)] * 2 + list(range(len(records) + 1)))
        super().append(records[:there])
        self.operator()
        if there < len(records) or self.draw.random() < 0.3:
            raise EventLogUnavailable("cut off")

    def operator(self) -> None:
        assert self.draw is not None
        while self.words < 8 and self.draw.random() < 0.4:
            self.words += 1
            version, state = f"v{self.draw.randint(1, 3)}", self.draw.choice([CANARY, STABLE, ROLLED_BACK])
            super().append([event(version, state, "operator", self.words)])

    def said(self) -> list[PolicyEvent]:
        return [PolicyEvent.FromString(entry.value) for entry in self.read(from_beginning(self, POLICIES))]


def event(version: str, state: PolicyState.ValueType, actor: str = "learner", number: int = 0) -> Record:
    made = PolicyEvent(schema_version=1, version=version, state=state, actor=actor, reason=f"word {number}", share=0.5)
    made.time.FromSeconds(number)
    return Record(POLICIES, version, made.SerializeToString())


def folded(events: Sequence[PolicyEvent]) -> Releases:
    releases = Releases()
    for offset, each in enumerate(events):
        releases.apply(each, offset)
    return releases


def first_said(events: Sequence[PolicyEvent]) -> list[PolicyEvent]:
    """The operator's words, each where it was first said."""
    by_hand = [each for each in events if each.actor == "operator"]
    return [each for number, each in enumerate(by_hand) if each not in by_hand[:number]]


def started(log: Troubled, store: Experience, new: bool) -> Policies:
    """A learner that comes back until it gets through."""
    for _ in range(100):
        policies = Policies(log, store)
        try:
            policies.start(new=new)
        except EventLogUnavailable:
            log.operator()
        else:
            return policies
    raise AssertionError("it never gets through")


@pytest.mark.parametrize("new", [False, True])
def test_as_if_the_operator_had_spoken_afterwards(tmp_path: Path, new: bool) -> None:
    """new: what is announced are the versions that a new log lacks."""
    overtaken = dropped = 0
    for seed in range(30):
        log, store = Troubled(tmp_path / f"{seed}.sqlite"), Experience(tmp_path / f"{seed}-experience.sqlite")
        for connection in (log._writer, store._db):
            connection.execute("PRAGMA synchronous = OFF")  # power does not fail here
        log.append([event("v1", STABLE), event("v2", CANARY, "operator"), event("v3", ROLLED_BACK)])
        policies = started(log, store, new=False)
        before = log.said()
        ours = event("v2", STABLE)
        if new:
            log.close()
            log = Troubled(tmp_path / f"{seed}-new.sqlite")
            log._writer.execute("PRAGMA synchronous = OFF")
        log.draw = random.Random(seed)
        log.operator()
        if not new:
            try:
                policies.announce(PolicyEvent.FromString(ours.value))
            except EventLogUnavailable:
                log.operator()
        policies = started(log, store, new=new)
        said = log.said()
        if not new:
            own = PolicyEvent.FromString(ours.value)
            dropped += own not in said
            before += [own] if own in said else []
            said = said[3:]
        words = first_said([each for each in said if each not in before])
        overtaken += len(words)
        expected, found = folded([*before, *words]), folded(log.said())
        assert (found.promoted(), found.canary) == (expected.promoted(), expected.canary), seed
        assert [found.event(v) for v in found.versions()] == [expected.event(v) for v in expected.versions()], seed
        assert policies.releases.promoted() == found.promoted()
        assert store.heard.announcing(log.identity) == (0, [])
        count = len(log.said())
        log.draw = None
        started(log, store, new=False)
        assert len(log.said()) == count, "said again once"
        log.close()
        store.close()
    assert overtaken > 30
    assert new or 0 < dropped < 15
