"""GET /v1/loop and its events."""

from __future__ import annotations

import json
from typing import Any

import httpx

from plaudit.v1.policy_pb2 import PolicyState
from tests.gateway.conftest import Gateway


def test_the_picture(http: httpx.Client) -> None:
    picture = http.get("/v1/loop").json()
    assert set(picture) == {"learner", "rounds", "releases", "policies", "serving_version"}
    assert picture["serving_version"] == "v1"
    assert [(policy["version"], policy["state"]) for policy in picture["policies"]] == [
        ("v0", "retired"),
        ("v1", "stable"),
    ]
    step = picture["releases"][-1]
    assert (step["policy_version"], step["state"], step["actor"]) == ("v1", "stable", "learner")
    assert step["time"].endswith("Z")


def test_events_follow_what_changes(served: Gateway, http: httpx.Client) -> None:
    with http.stream("GET", "/v1/loop/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        pictures = (
            json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: ")
        )
        first: Any = next(pictures)
        assert len(first["policies"]) == 2
        served.deployment.announce("v2", PolicyState.POLICY_STATE_REJECTED, parent="v1", reason="made worse")
        following: Any = next(pictures)
        while len(following["policies"]) < 3:  # the loop's picture may be newer than the list of versions
            following = next(pictures)
    assert (following["releases"][-1]["policy_version"], following["policies"][-1]["state"]) == ("v2", "rejected")
