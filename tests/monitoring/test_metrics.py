"""The table of metrics is that of the code; series are bounded, however many versions come and go."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from monitoring import metrics_table
from plaudit.releases import Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_learner.experience.store import Tally
from plaudit_learner.metrics import LearnerMetrics
from plaudit_server.metrics import OTHER, ServerMetrics

# What a label may be: each has a handful of values, or those that the page says. None is a user, or a caller.
LABELS = {
    *(
        "policy_version",
        "parent",
        "state",
        "aspect",
        "verdict",
        "thumb",
        "outcome",
        "decision",
        "side",
        "stage",
        "topic",
    ),
    *("measure", "figure", "why", "what", "reason", "finish_reason", "method", "code"),
    *("version", "program", "engine", "model", "plaudit_learner_stage"),
    *("route", "status"),
}


def series(registry: CollectorRegistry, label: str = "") -> dict[str, set[str]]:
    """The values of a label, by metric; every sample's name if there is no label asked for."""
    found: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            if not label or label in sample.labels:
                found.setdefault(family.name, set()).add(sample.labels.get(label, repr(sample.labels)))
    return found


def size(registry: CollectorRegistry) -> int:
    return sum(len(family.samples) for family in registry.collect())


def test_the_page_is_what_the_code_makes() -> None:
    assert metrics_table.PAGE.read_text() == metrics_table.page(), "make metrics-table"


def test_each_metric_has_a_meaning_and_labels_that_are_bounded() -> None:
    for rows in metrics_table.programs().values():
        for row in rows:
            assert row.name.startswith("plaudit_"), row.name
            assert row.meaning, row.name
            assert row.unit is not None
            assert set(row.labels) <= LABELS, row.name


def test_programs_show_their_own_process_and_version() -> None:
    for metrics in (ServerMetrics(CollectorRegistry()), LearnerMetrics(CollectorRegistry())):
        names = {family.name for family in metrics.registry.collect()}
        assert {"process_cpu_seconds", "process_resident_memory_bytes", "plaudit_build_info"} <= names


def serve(metrics: ServerMetrics, version: str) -> None:
    """What a server counts of a version while it is loaded."""
    metrics.load(version)
    metrics.serve(version)
    metrics.try_out(version, 0.1)
    metrics.time_to_first_token.labels(version).observe(0.1)
    metrics.inter_token_latency.labels(version).observe(0.01)
    metrics.e2e_request_latency.labels(version).observe(1.0)
    metrics.requests.labels(version, "stop").inc()
    metrics.generation_tokens.labels(version).inc(10)
    metrics.feedback.labels(metrics.version(version), "quality", "up").inc()


def test_a_servers_series_are_bounded_however_many_versions_come_and_go() -> None:
    metrics = ServerMetrics(CollectorRegistry())
    sizes = []
    for number in range(1, 101):
        serve(metrics, f"v{number}")
        if number > 2:
            metrics.unload(f"v{number - 2}")  # two are loaded beside the base
        metrics.feedback.labels(metrics.version("v1"), "quality", "down").inc()  # a late vote, on an old reply
        sizes.append(size(metrics.registry))
    assert max(sizes) == max(sizes[:20]), "it grows no more once the first ones have gone"
    assert series(metrics.registry, "policy_version")["plaudit_requests"] == {f"v{n}" for n in range(91, 101)}
    assert series(metrics.registry, "policy_version")["plaudit_version_loaded"] == {"v0", "v99", "v100"}
    votes = {s.labels["policy_version"]: s.value for f in metrics.feedback.collect() for s in f.samples}
    assert votes[OTHER] > 80, "votes on versions that have no series are counted all the same"


def test_a_version_that_comes_back_counts_again() -> None:
    metrics = ServerMetrics(CollectorRegistry())
    serve(metrics, "v1")
    metrics.unload("v1")
    serve(metrics, "v1")  # rolled back to before its series have gone: they go on
    assert (
        metrics.registry.get_sample_value("plaudit_requests_total", {"policy_version": "v1", "finish_reason": "stop"})
        == 2.0
    )
    metrics.unload("v1")
    for number in range(2, 12):
        serve(metrics, f"v{number}")
        metrics.unload(f"v{number}")
    assert "v1" not in series(metrics.registry, "policy_version")["plaudit_requests"]
    serve(metrics, "v1")
    assert metrics.version("v1") == "v1"


def test_the_learners_series_are_bounded_and_hold_what_is_in_service() -> None:
    metrics = LearnerMetrics(CollectorRegistry())
    releases, sizes = Releases(), []
    for number in range(1, 101):
        # v1 stays the stable version: all that comes after it is refused.
        state = PolicyState.POLICY_STATE_STABLE if number == 1 else PolicyState.POLICY_STATE_REJECTED
        event = PolicyEvent(version=f"v{number}", parent="v0" if number == 1 else "v1", state=state)
        event.metrics["reward_gain"] = 0.25
        releases.apply(event, number)
        metrics.stands(releases, trial=False)
        metrics.tally({f"v{n}": Tally(up=3, down=1) for n in range(number + 1)})
        sizes.append(size(metrics.registry))
    assert max(sizes) == max(sizes[:20])
    shown = {"v0", "v1", *(f"v{number}" for number in range(85, 101))}
    found = series(metrics.registry, "policy_version")
    assert found["plaudit_votes"] == shown
    assert found["plaudit_policy_state"] == shown
    assert found["plaudit_policy_reward_gain"] == shown - {"v0"}


def test_approval_has_its_interval_and_a_trial_its_begin() -> None:
    metrics = LearnerMetrics(CollectorRegistry())
    metrics.tally({"v0": Tally(up=30, down=10), "v1": Tally(up=0, down=0)})
    value = metrics.registry.get_sample_value
    low, share, high = (
        value(f"plaudit_approval_ratio{end}", {"policy_version": "v0"}) for end in ("_low", "", "_high")
    )
    assert share == 0.75
    assert low is not None
    assert high is not None
    assert 0.55 < low < share < high < 0.9
    assert value("plaudit_approval_ratio", {"policy_version": "v1"}) is None, "of no votes there is no share"

    releases = Releases()
    canary = PolicyEvent(version="v1", parent="v0", state=PolicyState.POLICY_STATE_CANARY, share=0.5)
    canary.time.FromSeconds(1_700_000_000)
    releases.apply(canary, 0)
    metrics.stands(releases, trial=True)
    assert value("plaudit_canary_started_timestamp_seconds") == 1_700_000_000
    assert value("plaudit_policy_info", {"policy_version": "v1", "parent": "v0"}) == 1
    metrics.stands(releases, trial=False)
    assert value("plaudit_canary_started_timestamp_seconds") == 0
