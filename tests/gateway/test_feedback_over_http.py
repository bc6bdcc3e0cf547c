"""POST /v1/feedback: what is said of a reply reaches the event log."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI

from plaudit.events import FEEDBACK, from_beginning, open_log
from plaudit.v1.events_pb2 import Feedback
from tests.gateway.conftest import Gateway
from tests.gateway.test_openai import HELLO


def receipt(client: OpenAI, user: str = "ann") -> str:
    answer = client.chat.completions.create(model="plaudit", messages=HELLO, max_tokens=1, user=user)
    given: Any = answer.to_dict()["plaudit"]
    return str(given["receipt"])


def written(served: Gateway) -> list[Feedback]:
    with open_log(served.deployment.event_log) as log:
        return [Feedback.FromString(entry.value) for entry in log.read(from_beginning(log, FEEDBACK))]


def test_each_statement_is_durable_and_says_where(served: Gateway, client: OpenAI, http: httpx.Client) -> None:
    ours, other = receipt(client), receipt(client)
    said: list[dict[str, Any]] = [
        {"thumb": "up", "idempotency_key": "once"},
        {"thumb": "down", "aspect": "relevance", "user": "ann"},
        {"rating": 4},
        {"preferred_over": other},
        {"comment": "well said"},
        {"retract": True},
    ]
    before = len(written(served))
    for statement in said:
        answer = http.post("/v1/feedback", json={"receipt": ours, **statement})
        assert (answer.status_code, answer.json()) == (200, {"durability": "event_log"})
    new = written(served)[before:]
    kinds = ["retraction" if record.retraction else record.WhichOneof("verdict") for record in new]
    assert kinds == ["thumb", "thumb", "rating", "preferred_over", "comment", "retraction"]
    assert new[0].feedback_id == "once"
    assert new[1].aspect == "relevance"
    assert {record.user for record in new} == {served.deployment.pseudonym("ann")}


@pytest.mark.parametrize(
    ("wrong", "param", "says"),
    [
        ({}, None, "exactly one of thumb, rating, preferred_over, comment, retract"),
        ({"thumb": "up", "rating": 3}, None, "exactly one of"),
        ({"thumb": "sideways"}, "thumb", "'up' or 'down'"),
        ({"rating": 6}, "rating", "less than or equal to 5"),
        ({"retract": False}, "retract", "True"),
        ({"comment": "x" * 5000}, "comment", "the most is 4,096"),
        ({"thumb": "up", "aspect": "colour"}, "aspect", "is not voted on here"),
        ({"thumb": "up", "user": "bob"}, "user", "is not the user whose reply"),
        ({"preferred_over": "made up"}, "preferred_over", "receipt"),
        ({"thumb": "up", "receipt": "made up"}, "receipt", "receipt"),
        ({"thumb": "up", "vote": 1}, "vote", "is not known here"),
    ],
)
def test_a_wrong_statement_is_refused_by_field(
    client: OpenAI, http: httpx.Client, wrong: dict[str, Any], param: str | None, says: str
) -> None:
    answer = http.post("/v1/feedback", json={"receipt": receipt(client), **wrong})
    problem = answer.json()["error"]
    assert (answer.status_code, problem["param"]) == (400, param)
    assert says in problem["message"]
