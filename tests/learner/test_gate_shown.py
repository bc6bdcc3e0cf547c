"""What the gate found reaches people: the policy event, and the metrics."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from plaudit.artifacts import PolicyStore
from plaudit.events import POLICIES
from plaudit.events.sqlite import SqliteLog
from plaudit.releases import Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import GateCheck, PolicyState
from plaudit_learner.experience.intake import Intake
from plaudit_learner.experience.store import Experience
from plaudit_learner.gate.judge import Check, Verdict
from plaudit_learner.metrics import LearnerMetrics
from plaudit_learner.policy import Policy
from plaudit_learner.release import Publisher

CHECKS = [
    Check("reward", 0.5, 0.25, 0.375, upper=False, kept=True, reason="not surely better"),
    Check("longer", 80.0, 50.0, 75.0, upper=True, kept=False, reason="replies are too long"),
    Check("loops", 0.5, 0.0, 0.125, upper=True, kept=False, reason="replies repeat themselves"),
]


def test_a_rejected_version_says_why(tmp_path: Path, tiny_model: Path) -> None:
    with SqliteLog(tmp_path / "events.sqlite") as log:
        store = Experience(tmp_path / "experience.sqlite")
        publisher = Publisher(PolicyStore(str(tmp_path / "versions")), Intake(log, store).announce, "0" * 64)
        verdict = Verdict(CHECKS, {"kl": 0.5})
        publisher.publish(
            Policy.load(tiny_model),
            verdict,
            Releases(),
            parent="v0",
            reference="v0",
            window={},
            metrics=verdict.metrics,
        )
        store.close()
        (record,) = log.read({(POLICIES, partition): 0 for partition in log.partitions(POLICIES)})
    event = PolicyEvent.FromString(record.value)
    assert event.state == PolicyState.POLICY_STATE_REJECTED
    assert event.reason == "replies are too long; replies repeat themselves"
    assert [check.measure for check in event.checks] == ["reward", "longer", "loops"]
    assert event.checks[1] == GateCheck(
        measure="longer", candidate=80.0, reference=50.0, bound=75.0, upper=True, kept=False
    )


def test_metrics_have_every_figure_and_count_the_vetoes() -> None:
    metrics = LearnerMetrics(CollectorRegistry())
    metrics.gated(CHECKS)
    metrics.gated(CHECKS[:2])

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert value("plaudit_gate", measure="reward", figure="candidate") == 0.5
    assert value("plaudit_gate", measure="reward", figure="reference") == 0.25
    assert value("plaudit_gate", measure="longer", figure="bound") == 75.0
    vetoes = [value("plaudit_gate_vetoes_total", measure=check.measure) for check in CHECKS]
    assert vetoes == [0.0, 2.0, 1.0]
