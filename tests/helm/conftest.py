"""The chart, rendered by Helm's own code in this process; each document is read once, and strictly."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart

CHART = Path(__file__).parents[2] / "helm" / "plaudit"
RELEASE, NAMESPACE = "plaudit", "chat"

Document = dict[str, Any]
Render = Callable[..., list[Document]]


class _StrictLoader(yaml.CSafeLoader):
    """A key that stands twice in a mapping is an error; YAML libraries silently take the last."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.YAMLError(f"{twice} stands twice, {node.start_mark}")
    return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def documents(rendered: Mapping[str, str]) -> list[Document]:
    """All documents of all templates but the notes."""
    found = []
    for template, text in rendered.items():
        if not template.endswith("NOTES.txt"):
            found += [document for document in yaml.load_all(text, _StrictLoader) if document is not None]
    return found


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`, whose keys are paths: {"server.state.persistent": False}."""
    result = copy.deepcopy(dict(values))
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return result


@pytest.fixture(scope="session")
def plain() -> dict[str, Any]:
    """The least values that render."""
    values: dict[str, Any] = yaml.safe_load((CHART / "ci" / "plain.yaml").read_text())
    return values


@pytest.fixture(scope="session")
def chart() -> Iterator[Chart]:
    with Chart.load(CHART) as chart:
        yield chart


@pytest.fixture(scope="session")
def render(chart: Chart, plain: dict[str, Any]) -> Render:
    """render({"path.of.value": value, …}): the documents, with the plain values for the rest."""
    cache: dict[str, list[Document]] = {}

    def rendered(changes: Mapping[str, Any] | None = None) -> list[Document]:
        values = merged(plain, changes or {})
        key = json.dumps(values, sort_keys=True)
        if key not in cache:
            chart.validate_schema(values)
            cache[key] = documents(chart.render(values, name=RELEASE, namespace=NAMESPACE))
        return cache[key]

    return rendered


def one(found: list[Document], kind: str, name: str) -> Document:
    """The document of that kind and name; there is one."""
    (document,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return document


def workloads(found: list[Document]) -> dict[str, Document]:
    """Deployments and StatefulSets, by component."""
    return {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: each
        for each in found
        if each["kind"] in ("Deployment", "StatefulSet")
    }


def container(workload: Document) -> Document:
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return dict(only)
