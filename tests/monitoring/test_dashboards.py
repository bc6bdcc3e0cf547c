"""The dashboards' files are what the code makes, and ask for nothing that is not there.

That every panel finds data in a real run: tests/e2e/test_monitoring.py.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from monitoring import dashboards
from monitoring.metrics_table import programs
from monitoring.rules import metrics, rules

DASHBOARDS = {name: json.loads(text) for name, text in dashboards.files().items()}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_the_files_are_what_the_code_makes() -> None:
    committed = {file.name: file.read_text() for file in dashboards.DIRECTORY.glob("*.json")}
    assert committed == dashboards.files(), "make dashboards"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_say_what_they_show_and_lie_beside_one_another(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        assert panel["datasource"]["uid"] == "$datasource"
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y


@pytest.mark.parametrize("name", DASHBOARDS)
def test_queries_read_what_is_there_and_use_the_variables(name: str) -> None:
    scraped = {name for rows in programs().values() for row in rows for name in row.scraped}
    known = scraped | {rule.name for rule in rules() if not rule.alert}
    known |= {"process_cpu_seconds_total", "process_resident_memory_bytes"}
    known |= {"plaudit_learner_stage"}
    variables = {variable["name"] for variable in DASHBOARDS[name]["templating"]["list"]}
    for panel in panels(DASHBOARDS[name]):
        for target in panel["targets"]:
            assert metrics(target["expr"]), panel["title"]
            assert metrics(target["expr"]) <= known, panel["title"]
            assert 'namespace=~"$namespace"' in target["expr"], panel["title"]
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables, panel["title"]


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    """What nobody looks at need not be measured."""
    shown = {
        name
        for dashboard in DASHBOARDS.values()
        for panel in panels(dashboard)
        for target in panel["targets"]
        for name in metrics(target["expr"])
    }
    read = shown | {name for rule in rules() for name in rule.metrics}
    for program, rows in programs().items():
        if program == "Of the gateway":  # a client of the servers, beside them: the chart does not have it scraped
            continue
        for row in rows:
            assert row.scraped & read, row.name
