"""What a server's spans and its lines about calls say: enough to follow a call, and nobody's words."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from plaudit import logs, tracing
from plaudit.events import FEEDBACK, INTERACTIONS, POLICIES, from_beginning, open_log
from plaudit.v1.events_pb2 import Feedback, Interaction, PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_client import InvalidRequest, NotFound, ServerError, Statement
from plaudit_server.prompts import ChatTemplate
from tests.fixtures_server import Deployment, until_known, until_serving
from tests.fixtures_traces import Spans, links_of, name_of

CHAT, VOTE = "plaudit.v1.ChatService/StreamChat", "plaudit.v1.FeedbackService/SubmitFeedback"
ROUND = f"00-{'4b' * 16}-{'a1' * 8}-01"


def in_log(deployment: Deployment, topic: str, kind: Any) -> list[Any]:
    with open_log(deployment.event_log) as log:
        return [kind.FromString(entry.value) for entry in log.read(from_beginning(log, topic))]


async def until_ended(spans: Spans, name: str, count: int = 1) -> None:
    """A call's span ends just after its answer."""
    async with asyncio.timeout(10):
        while len(spans.named(name)) < count:
            await asyncio.sleep(0.01)


async def test_a_call_is_followed_from_the_client_to_the_event_log(deployment: Deployment, spans: Spans) -> None:
    async with deployment.client(traces=True) as client:
        with spans.tracer.start_as_current_span("asking") as asking:
            reply = client.chat("hello", max_tokens=4, temperature=0.5)
            await reply.read()
        await reply.thumbs_up()
        statements = [Statement(reply.receipt, rating=4), Statement(reply.receipt, comment="well")]
        assert [settled.count async for settled in client.stream_feedback(statements)][-1] == 2
        await until_ended(spans, "plaudit.v1.FeedbackService/StreamFeedback")
        await until_ended(spans, CHAT)
    chat, vote = spans.one(CHAT), spans.one(VOTE)
    stream = spans.one("plaudit.v1.FeedbackService/StreamFeedback")
    assert chat.parent is not None
    assert chat.parent.span_id == asking.get_span_context().span_id, "the caller's context came with the call"
    assert vote.parent is None, "said outside of any span"
    assert [event.name for event in chat.events] == ["admitted", "first token", "finished"]
    assert chat.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": CHAT,
        "rpc.response.status_code": "OK",
        "plaudit.policy_version": "v0",
        "plaudit.response_id": reply.response_id,
    }
    engine, wait = spans.one("chat v0"), spans.one("wait for a place in the engine")
    for below in (engine, wait):
        assert below.parent == chat.context
    assert engine.attributes is not None
    assert engine.attributes["gen_ai.request.model"] == "v0"
    assert engine.attributes["gen_ai.usage.output_tokens"] == reply.usage.completion_tokens  # type: ignore[union-attr]
    # What was recorded leads back to the calls; each batch that went to the log, to those of all its records.
    (interaction,) = in_log(deployment, INTERACTIONS, Interaction)
    assert interaction.traceparent == name_of(chat)
    said = [record.traceparent for record in in_log(deployment, FEEDBACK, Feedback)]
    assert said == [name_of(vote), name_of(stream), name_of(stream)]
    batches = spans.named("append to the event log")
    assert {link for batch in batches for link in links_of(batch)} == {interaction.traceparent, *said}
    counts = [(batch.attributes or {})["messaging.batch.message_count"] for batch in batches]
    assert sum(map(int, counts)) == 4  # type: ignore[arg-type]


async def test_a_version_leads_to_its_round_and_an_operators_step_to_the_call(
    deployment: Deployment, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with deployment.client(traces=True) as client:
        sha256 = deployment.publish("v1", seed=1, announce=False)
        deployment.announce(
            "v1", PolicyState.POLICY_STATE_STABLE, manifest_sha256=sha256, traceparent=ROUND, parent="v0"
        )
        await until_serving(client, "v1")
        deployment.announce("v2", PolicyState.POLICY_STATE_STABLE, manifest_sha256="0" * 64, traceparent="nonsense")
        await until_known(client, "v2")
        await until_ended(spans, "load v2")
        await client.rollback_policy("v2", "it is not there")
        await client.promote_policy("v1", "by hand")
        await until_ended(spans, "plaudit.v1.PolicyService/PromotePolicy")
    load, promote = spans.one("load v1"), spans.one("plaudit.v1.PolicyService/PromotePolicy")
    assert links_of(load) == [ROUND]
    assert load.status.is_ok or load.status.is_unset
    refused = spans.named("load v2")[0]
    assert links_of(refused) == []
    assert not refused.status.is_ok
    assert (refused.attributes or {})["error.type"] == "ArtifactError"
    last = [event for event in in_log(deployment, POLICIES, PolicyEvent) if event.version == "v1"][-1]
    assert last.traceparent == name_of(promote)
    assert links_of(promote) == [ROUND], "from a step by hand, too, one gets to the round"
    told = {record.getMessage(): getattr(record, "fields", {}) for record in caplog.records}
    serving = next(fields for message, fields in told.items() if message.startswith("serving v1 (was v0)"))
    assert serving["trace_id"] == tracing.trace_of(ROUND)
    by_hand = told["an operator says that v1 is stable: by hand"]
    assert (by_hand["step"], by_hand["actor"]) == ("stable", "operator")


async def test_without_traces_nothing_is_traced_and_a_round_is_not_forgotten(
    deployment: Deployment, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    deployment.publish("v1", seed=1, announce=False)
    deployment.announce("v1", PolicyState.POLICY_STATE_CANDIDATE, traceparent=ROUND)
    async with deployment.client() as client:
        with spans.tracer.start_as_current_span("asking") as asking:
            await client.chat("hello", max_tokens=4).read()
        await client.promote_policy("v1")
    assert [span.name for span in spans.all()] == ["asking"]
    (interaction,) = in_log(deployment, INTERACTIONS, Interaction)
    assert not interaction.traceparent
    assert in_log(deployment, POLICIES, PolicyEvent)[-1].traceparent == ROUND
    (call,) = [line for line in lines(caplog) if line["method"].endswith("StreamChat")]
    assert call["trace_id"] == f"{asking.get_span_context().trace_id:032x}", "the caller's own is logged all the same"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [getattr(record, "fields", {}) for record in caplog.records if record.name == logs.ACCESS]


async def test_one_line_for_each_call_however_it_ends(
    deployment: Deployment, spans: Spans, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    encode = ChatTemplate.encode

    def cursed(self: ChatTemplate, messages: Any) -> tuple[int, ...]:
        if "cursed" in str(messages):
            raise RuntimeError("cursed")
        return encode(self, messages)

    monkeypatch.setattr(ChatTemplate, "encode", cursed)
    deployment.publish_endless("v1")
    async with deployment.client(traces=True) as client:
        assert await client.healthy()
        reply = client.chat("hello", max_tokens=3)
        await reply.read()
        await reply.thumbs_up()
        with pytest.raises(InvalidRequest):
            await client.chat([{"role": "assistant", "content": "hello"}]).read()
        with pytest.raises(NotFound):
            await client.chat("hello", policy_version="v9").read()
        with pytest.raises(ServerError):
            await client.chat("cursed").read()
        async for _ in (left := client.chat("hello", max_tokens=200)):
            break
        await until_ended(spans, CHAT, 5)
    by_code = {line["code"]: line for line in lines(caplog) if line["method"] == f"/{CHAT}"}
    assert list(by_code) == ["OK", "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "CANCELLED"]
    fine = by_code["OK"]
    assert (fine["policy_version"], fine["response_id"]) == ("v1", reply.response_id)
    assert (fine["completion_tokens"], fine["finish_reason"]) == (3, "length")
    assert 0 <= fine["waiting_seconds"] <= fine["seconds"]
    assert by_code["INVALID_ARGUMENT"]["field"].startswith("messages")
    assert by_code["CANCELLED"]["response_id"] == left.response_id
    assert by_code["CANCELLED"]["finish_reason"] == "cancelled"
    vote = next(line for line in lines(caplog) if line["method"] == f"/{VOTE}")
    assert (vote["response_id"], vote["policy_version"]) == (reply.response_id, "v1")
    assert len(lines(caplog)) == 6, "health is asked for by machines, all the time"
    # The spans tell the same, and call a failure only what is the server's.
    failed = {}
    for span in spans.named(CHAT):
        assert span.attributes is not None
        failed[span.attributes["rpc.response.status_code"]] = span.attributes.get("error.type")
    assert failed == dict.fromkeys(by_code) | {"INTERNAL": "INTERNAL"}
    traced = {tracing.trace_of(name_of(span)) for span in spans.named(CHAT)}
    assert {line["trace_id"] for line in by_code.values()} == traced
