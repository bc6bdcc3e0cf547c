"""Recording and alert rules, by Prometheus' own tools: each alert fires, and does not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from monitoring.metrics_table import programs
from monitoring.rules import FILES, Rule, metrics, rules, shortened
from tests.monitoring.rule_cases import CASES

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "operations.md"
GROUPS = [group["name"] for file in FILES for group in yaml.safe_load(file.read_text())["groups"]]
ALERTS = [rule for rule in rules() if rule.alert]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt-get install prometheus)"
)


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def unit_test(step: str) -> dict[str, object]:
    """All cases of one step, side by side: each side is a deployment of its own, with its namespace and instances."""
    sides = [
        (case, series, firing, f"{'fires' if firing else 'quiet'}-{number}")
        for number, case in enumerate(CASES)
        for series, firing in ((case.fires, True), (case.quiet, False))
        if case.step == step
    ]
    return {
        "interval": step,
        "input_series": [
            {"series": place(name, namespace), "values": values}
            for _, series, _, namespace in sides
            for name, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing",namespace="{namespace}"}})',
                "eval_time": case.at,
                "exp_samples": [{"labels": "{}", "value": 1}] if firing else [],
            }
            for case, _, firing, namespace in sides
        ],
    }


def place(series: str, namespace: str) -> str:
    series = re.sub(r'namespace="(\w+)"', lambda found: f'namespace="{namespace}{found[1].removeprefix("a")}"', series)
    return re.sub(r'instance="(\w+)"', rf'instance="{namespace}-\1"', series)


@needs_promtool
def test_each_alert_fires_and_does_not(tmp_path: Path) -> None:
    files = []
    for step in sorted({case.step for case in CASES}):  # what is looked at after days is evaluated less often
        test = unit_test(step)
        document = {"rule_files": [str(file) for file in FILES], "evaluation_interval": step, "tests": [test]}
        document["group_eval_order"] = GROUPS  # promtool would take any
        files.append(tmp_path / f"{step}.yaml")
        files[-1].write_text(yaml.safe_dump(document))
    promtool("test", "rules", *map(str, files))
    assert {case.alert for case in CASES} == {rule.name for rule in ALERTS}, "each alert has its tests"


@needs_promtool
def test_an_alert_says_what_is_wrong_where(tmp_path: Path) -> None:
    """Templates are filled in with the figure and the place; the labels are what alerts are routed by."""
    labels = {"namespace": "a", "job": "server", "instance": "s0"}
    series = "plaudit_outbox_oldest_seconds{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
    annotations = {
        "summary": "Records wait for the event log",
        "description": "The oldest record in the outbox of s0 has waited for 20m 0s.",
        "runbook_url": "docs/operations.md#plauditoutboxgrowing",
    }
    expected = {"exp_labels": {**labels, "severity": "warning"}, "exp_annotations": annotations}
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": "0x40 0+60x100"}],
        "alert_rule_test": [{"eval_time": "61m", "alertname": "PlauditOutboxGrowing", "exp_alerts": [expected]}],
    }
    document = {"rule_files": [str(file) for file in FILES], "evaluation_interval": "1m", "tests": [test]}
    document["group_eval_order"] = GROUPS
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(document))
    promtool("test", "rules", str(tmp_path / "tests.yaml"))


@needs_promtool
def test_the_rules_are_rules_also_when_they_are_shortened(tmp_path: Path) -> None:
    files = []
    for file in FILES:
        files.append(tmp_path / file.name)
        files[-1].write_text(yaml.safe_dump(shortened(yaml.safe_load(file.read_text()), "1s")))
    promtool("check", "rules", *map(str, FILES), *map(str, files))


def test_shortening_changes_durations_and_nothing_else() -> None:
    rule = {"alert": "A", "expr": "increase(x_60[1h]) > 60 and x offset 1d == 2.5 or rate(y[5m]) > 0", "for": "10m"}
    (group,) = shortened({"groups": [{"name": "g", "rules": [rule]}]}, "1s")["groups"]
    assert group["rules"][0] == {
        "alert": "A",
        "expr": "increase(x_60[15s]) > 60 and x offset 15s == 2.5 or rate(y[8s]) > 0",
        "for": "6s",
    }


@pytest.mark.parametrize("rule", ALERTS, ids=[rule.name for rule in ALERTS])
def test_an_alert_has_what_who_is_woken_needs(rule: Rule) -> None:
    assert re.fullmatch(r"Plaudit[A-Z]\w+", rule.name)
    assert rule.labels["severity"] in ("critical", "warning")
    assert rule.annotations.keys() == {"summary", "description", "runbook_url"}
    assert rule.annotations["runbook_url"] == f"docs/operations.md#{rule.name.lower()}"


@pytest.mark.skipif(not RUNBOOK.exists(), reason="docs/operations.md is not here yet")
def test_the_runbook_has_a_heading_for_each_alert_and_for_no_other() -> None:
    headings = re.findall(r"^#+ (Plaudit[A-Z]\w+)\s*$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(rule.name for rule in ALERTS)


def test_rules_read_nothing_that_is_not_there() -> None:
    scraped = {name for rows in programs().values() for row in rows for name in row.scraped}
    known = scraped | {rule.name for rule in rules() if not rule.alert} | {"process_start_time_seconds"}
    for rule in rules():
        assert rule.metrics, rule.name
        assert rule.metrics <= known, rule.name


def test_the_names_in_an_expression_are_found() -> None:
    expr = 'rate(plaudit_a_total{why="plaudit_no"}[5m]) / namespace:plaudit_b:p95_rate5m > on (x) plaudit_c'
    assert metrics(expr) == {"plaudit_a_total", "namespace:plaudit_b:p95_rate5m", "plaudit_c"}
