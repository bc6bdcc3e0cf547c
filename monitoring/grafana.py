"""As much of Grafana's dashboard JSON as ours need: panels on a grid, with units, thresholds and descriptions.

Plain dicts, and no library: grafana-foundation-sdk, the one that is kept, has a release for each version of Grafana,
and its numbers (1769699998!10.1.0) do not tell which one is newer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

WIDTH = 24
_SOURCE = {"type": "prometheus", "uid": "$datasource"}


@dataclass(frozen=True)
class Panel:
    """One question, and the queries that answer it."""

    title: str
    description: str
    queries: Sequence[tuple[str, str]]
    """PromQL, and the legend of its series."""
    unit: str = "short"
    """Grafana's name of it: s, percentunit, short, reqps, bytes, …"""
    kind: str = "timeseries"
    """Or stat, table, state-timeline, bargauge."""
    width: int = 8
    height: int = 7
    thresholds: Sequence[tuple[float | None, str]] = ()
    """From which value on (None: from the lowest) which colour."""
    least: float | None = 0
    most: float | None = None
    mappings: Sequence[tuple[float, str, str]] = ()
    """What stands for a value: text and colour."""

    @property
    def now(self) -> bool:
        """Whether it shows the present only."""
        return self.kind in ("stat", "table", "bargauge")

    def json(self, number: int, x: int, y: int) -> Json:
        """At a place on the grid."""
        defaults: Json = {"unit": self.unit}
        if self.least is not None:
            defaults["min"] = self.least
        if self.most is not None:
            defaults["max"] = self.most
        steps = self.thresholds or [(None, "green")]
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"value": v, "color": colour} for v, colour in steps]}
        if self.thresholds and self.kind == "timeseries":
            defaults["custom"] = {"thresholdsStyle": {"mode": "line"}}
        if self.mappings:
            options = {str(value): {"text": text, "color": colour} for value, text, colour in self.mappings}
            defaults["mappings"] = [{"type": "value", "options": options}]
        panel: Json = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": _SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "datasource": _SOURCE,
                    "expr": expr,
                    "legendFormat": legend,
                    "instant": self.now,
                    "range": not self.now,
                    "format": "table" if self.kind == "table" else "time_series",
                }
                for index, (expr, legend) in enumerate(self.queries)
            ],
            "options": self._options(),
        }
        if self.kind == "table":
            panel["transformations"] = [
                {"id": "merge", "options": {}},
                {"id": "organize", "options": {"excludeByName": {"Time": True, "__name__": True}}},
            ]
        return panel

    def _options(self) -> Json:
        if self.kind == "timeseries":
            return {
                "legend": {"displayMode": "list", "placement": "bottom"},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        if self.kind in ("stat", "bargauge"):
            return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        return {}


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: Sequence[Panel]


def dashboard(uid: str, title: str, description: str, rows: Sequence[Row]) -> Json:
    """The whole, laid out from left to right, with the variables that every query may use."""
    panels: list[Json] = []
    y = 0
    for row in rows:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        y, x, height = y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            panels.append(panel.json(len(panels) + 1, x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["plaudit"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {
            "list": [
                {
                    "name": "Releases",
                    "datasource": _SOURCE,
                    "enable": True,
                    "iconColor": "purple",
                    "expr": "plaudit_version_served unless plaudit_version_served offset 1m",
                    "titleFormat": "{{policy_version}} is served",
                }
            ]
        },
        "links": [{"type": "dashboards", "title": "Plaudit", "tags": ["plaudit"], "asDropdown": True}],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("namespace", "Namespace", "label_values(plaudit_build_info, namespace)"),
                _variable(
                    "instance", "Instance", 'label_values(plaudit_build_info{namespace=~"$namespace"}, instance)'
                ),
            ]
        },
        "panels": panels,
    }


def _variable(name: str, label: str, query: str) -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # also what has no such label: without Kubernetes nothing has a namespace
        "current": {"text": "All", "value": "$__all", "selected": True},
    }
