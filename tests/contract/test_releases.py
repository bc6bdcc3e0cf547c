"""The life of a version: the fold of the policy events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.releases import Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import GateCheck, PolicyState

CANDIDATE = PolicyState.POLICY_STATE_CANDIDATE
STABLE = PolicyState.POLICY_STATE_STABLE
RETIRED = PolicyState.POLICY_STATE_RETIRED
REJECTED = PolicyState.POLICY_STATE_REJECTED
ROLLED_BACK = PolicyState.POLICY_STATE_ROLLED_BACK
CANARY = PolicyState.POLICY_STATE_CANARY

Step = tuple[str, PolicyState.ValueType]


def fold(*steps: Step) -> Releases:
    releases = Releases()
    for offset, (version, state) in enumerate(steps):
        releases.apply(PolicyEvent(version=version, state=state), offset)
    return releases


def canary(*steps: tuple[str, PolicyState.ValueType, float]) -> Releases:
    releases = Releases()
    for offset, (version, state, share) in enumerate(steps):
        releases.apply(PolicyEvent(version=version, state=state, share=share), offset)
    return releases


def state(releases: Releases, version: str) -> PolicyState.ValueType:
    policy = releases.policy(version)
    assert policy is not None
    return policy.state


def test_the_base_model_is_stable_from_the_start() -> None:
    releases = Releases()
    assert (releases.stable, releases.previous, releases.versions()) == ("v0", "v0", ["v0"])
    assert state(releases, "v0") == STABLE
    assert releases.policy("v1") is None


def test_what_the_gate_found_is_shown() -> None:
    releases = Releases()
    check = GateCheck(measure="kl", candidate=4.0, bound=3.0, upper=True)
    releases.apply(PolicyEvent(version="v1", state=REJECTED, metrics={"kl": 4.0}, checks=[check]), 0)
    policy = releases.policy("v1")
    assert policy is not None
    assert list(policy.checks) == [check]


def test_the_one_promoted_last_is_stable_and_the_one_before_is_retired() -> None:
    releases = fold(("v1", CANDIDATE), ("v1", STABLE), ("v2", CANDIDATE), ("v2", STABLE))
    assert (releases.stable, releases.previous) == ("v2", "v1")
    assert state(releases, "v1") == RETIRED
    assert state(releases, "v0") == RETIRED


def test_rolling_back_needs_one_event() -> None:
    releases = fold(("v1", STABLE), ("v2", STABLE), ("v2", ROLLED_BACK))
    assert (releases.stable, releases.previous) == ("v1", "v0")
    assert state(releases, "v2") == ROLLED_BACK


def test_an_older_version_can_be_promoted_again_the_base_model_too() -> None:
    releases = fold(("v1", STABLE), ("v2", STABLE), ("v1", STABLE))
    assert (releases.stable, releases.previous) == ("v1", "v2")
    releases = fold(("v1", STABLE), ("v0", STABLE))
    assert (releases.stable, releases.previous) == ("v0", "v1")
    assert state(releases, "v1") == RETIRED


def test_a_canary_serves_its_share_until_its_own_next_step() -> None:
    releases = canary(("v1", STABLE, 0), ("v2", CANARY, 0.1))
    assert (releases.stable, releases.canary, releases.share("v2")) == ("v1", "v2", 0.1)
    policy = releases.policy("v2")
    assert policy is not None
    assert (policy.state, policy.share) == (CANARY, 0.1)
    releases = canary(("v1", STABLE, 0), ("v2", CANARY, 0.1), ("v2", CANARY, 0.4))
    assert releases.share("v2") == 0.4, "a share is changed by one event"
    for step, stable in ((STABLE, "v2"), (ROLLED_BACK, "v1")):
        ended = canary(("v1", STABLE, 0), ("v2", CANARY, 0.1), ("v2", step, 0.1))
        assert (ended.stable, ended.canary, ended.share("v2")) == (stable, None, 0.0)


def test_of_several_canaries_the_last_one_counts() -> None:
    releases = canary(("v1", CANARY, 0.1), ("v2", CANARY, 0.2))
    assert (releases.canary, releases.share("v1"), releases.share("v2")) == ("v2", 0.0, 0.2)
    assert (state(releases, "v1"), state(releases, "v2")) == (RETIRED, CANARY)
    assert releases.canaries() == ["v1", "v2"]


def test_a_promotion_is_what_everybody_gets_and_a_roll_back_leaves_the_canary() -> None:
    releases = fold(("v1", STABLE), ("v2", STABLE), ("v3", CANARY), ("v1", STABLE))
    assert (releases.stable, releases.canary, state(releases, "v3")) == ("v1", None, RETIRED)
    releases = fold(("v1", STABLE), ("v2", STABLE), ("v3", CANARY), ("v2", ROLLED_BACK))
    assert (releases.stable, releases.canary) == ("v1", "v3")


@pytest.mark.parametrize(("share", "served"), [(float("nan"), 0.0), (-1.0, 0.0), (7.0, 1.0), (0.25, 0.25)])
def test_a_share_out_of_range_is_none_or_all(share: float, served: float) -> None:
    assert canary(("v1", CANARY, share)).share("v1") == served


def test_the_base_model_is_never_a_canary() -> None:
    releases = fold(("v0", CANARY))
    assert (releases.stable, releases.canary) == ("v0", None)


@pytest.mark.parametrize(
    ("version", "step", "words"),
    [
        ("v1", STABLE, "v1 is rejected, and what is rejected cannot become stable"),
        ("v2", ROLLED_BACK, "v2 is candidate, and what is candidate cannot become rolled back"),
        ("v2", STABLE, None),
        ("v3", ROLLED_BACK, "v3 is rolled back, and"),
        ("v3", STABLE, None),
        ("v4", STABLE, "v4 is new, and what is new cannot become stable"),
        ("v0", ROLLED_BACK, "nothing before it"),
        ("v0", STABLE, None),
        ("v0", CANARY, "v0 is retired, and what is retired cannot become canary"),
        ("v1", CANARY, "v1 is rejected, and"),
        ("v2", CANARY, None),
        ("v3", CANARY, None),
        ("v5", CANARY, "v5 is stable, and what is stable cannot become canary"),
        ("v6", CANARY, None),
        ("v6", STABLE, None),
        ("v6", ROLLED_BACK, None),
    ],
)
def test_what_cannot_follow_is_refused_in_words(version: str, step: PolicyState.ValueType, words: str | None) -> None:
    releases = fold(
        ("v1", REJECTED), ("v2", CANDIDATE), ("v3", STABLE), ("v3", ROLLED_BACK), ("v5", STABLE), ("v6", CANARY)
    )
    refusal = releases.refusal(version, step)
    assert refusal is None if words is None else words in str(refusal)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["v0", "v1", "v2", "v3"]),
        st.sampled_from([CANDIDATE, CANARY, STABLE, REJECTED, ROLLED_BACK]),
    ),
    max_size=30,
)


@given(STEPS)
def test_compaction_changes_nothing(steps: list[Step]) -> None:
    """A compacted topic keeps the last record of each key, at its offset."""
    whole, compacted = Releases(), Releases()
    for offset, (version, step) in enumerate(steps):
        whole.apply(PolicyEvent(version=version, state=step), offset)
        if all(later != version for later, _ in steps[offset + 1 :]):
            compacted.apply(PolicyEvent(version=version, state=step), offset)
    assert whole == compacted
    assert (whole.stable, whole.canary) == (compacted.stable, compacted.canary)
    assert [whole.policy(version) for version in whole.versions()] == [
        compacted.policy(version) for version in compacted.versions()
    ]


@given(STEPS)
def test_at_most_two_versions_are_in_service_and_they_are_two(steps: list[Step]) -> None:
    releases = fold(*steps)
    canaries = [version for version in releases.versions() if state(releases, version) == CANARY]
    assert canaries == ([releases.canary] if releases.canary else [])
    assert releases.canary not in (releases.stable, "v0")
    if releases.canary and steps:
        promoted = Releases()
        promoted._last = dict(releases._last)
        promoted.apply(PolicyEvent(version="v0", state=STABLE), len(steps))
        assert promoted.canary is None, "whoever is promoted is what everybody gets"


@given(STEPS)
def test_what_is_stable_was_promoted_and_is_neither_rejected_nor_rolled_back(steps: list[Step]) -> None:
    steps = [(version, step) for version, step in steps if version != "v0" or step == STABLE]
    releases = fold(*steps)
    assert state(releases, releases.stable) == STABLE
    assert sum(state(releases, version) == STABLE for version in releases.versions()) == 1


@pytest.mark.parametrize("name", ["", "v", "v01", "x1", "v-1", "v1 ", "../v1", "v" + "9" * 20])
def test_what_is_no_name_of_a_version_is_refused(name: str) -> None:
    releases = Releases()
    with pytest.raises(ValueError, match="no name of a version"):
        releases.apply(PolicyEvent(version=name, state=STABLE), 0)
    assert releases.versions() == ["v0"]


@given(st.lists(st.tuples(st.sampled_from(["v0", "v1", "v2", "v3"]), st.sampled_from([STABLE, CANARY, ROLLED_BACK]))))
def test_what_was_asked_for_before_an_event_does_not_outlive_it(steps: list[Step]) -> None:
    asked = Releases()
    for offset, (version, state) in enumerate(steps):
        asked.apply(PolicyEvent(version=version, state=state, share=0.1), offset)
        fresh = canary(*((version, state, 0.1) for version, state in steps[: offset + 1]))
        assert (asked.promoted(), asked.canary, asked.stable) == (fresh.promoted(), fresh.canary, fresh.stable)
        assert asked.changes == offset + 1
