"""The chart's Prometheus rules, for tools and tests: which there are, what they use, and the same in less time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[1] / "helm" / "plaudit"
FILES = sorted((CHART / "rules").glob("*.yaml"))

_DURATION = r"(\d+)(s|m|h|d|w)"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_METRIC = re.compile(r"\b(?:namespace\w*:)?(?:plaudit|process)_\w+(?::\w+)?")
_FASTER = 100
_WINDOW = (8, 15)  # seconds, at least and at most
_FOR = (2, 15)


@dataclass(frozen=True)
class Rule:
    """One of them."""

    name: str
    expr: str
    alert: bool
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def metrics(self) -> set[str]:
        """What it reads: metrics, recorded ones too, as they are called when they are scraped."""
        return metrics(self.expr)


def metrics(expr: str) -> set[str]:
    """The names in a PromQL expression that are Plaudit's, or its processes'."""
    without_strings = re.sub(r'"[^"]*"', '""', expr)
    return set(_METRIC.findall(without_strings))


def rules() -> list[Rule]:
    """All of them, in their order."""
    return [
        Rule(
            rule.get("alert") or rule["record"],
            rule["expr"],
            "alert" in rule,
            rule.get("labels", {}),
            rule.get("annotations", {}),
        )
        for file in FILES
        for rule in _each(yaml.safe_load(file.read_text()))
    ]


def shortened(document: dict[str, Any], interval: str) -> dict[str, Any]:
    """The same rules for a run of minutes, evaluated every `interval`.

    Each duration is divided by 100. A window or offset is then at least 8 s, so that it holds several samples, and at
    most 15 s; a `for` at least 2 s and at most 15 s. Nothing else changes: what is compared with what, and how, stays.
    """
    document = deepcopy(document)
    for group in document["groups"]:
        group["interval"] = interval
    for rule in _each(document):
        rule["expr"] = re.sub(rf"(\[|\boffset ){_DURATION}", lambda found: _short(found, *_WINDOW), rule["expr"])
        if "for" in rule:
            rule["for"] = re.sub(rf"(){_DURATION}", lambda found: _short(found, *_FOR), rule["for"])
    return document


def _short(duration: re.Match[str], least: int, most: int) -> str:
    before, number, unit = duration.groups()
    return f"{before}{min(max(int(number) * _SECONDS[unit] // _FASTER, least), most)}s"


def _each(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in document["groups"]:
        yield from group["rules"]
