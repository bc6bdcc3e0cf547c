"""The SDK: a reply as it streams, what frees the server, votes, and each failure as its own exception."""

from __future__ import annotations

import asyncio
import gc
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from plaudit.v1.chat_pb2 import Role
from plaudit.v1.feedback_pb2 import Thumb
from plaudit_client import (
    AsyncClient,
    Cancelled,
    DeadlineExceeded,
    Durability,
    FailedPrecondition,
    FinishReason,
    GateCheck,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    PlauditError,
    ResourceExhausted,
    ServerError,
    Statement,
    Token,
    Unauthenticated,
    Unavailable,
    Usage,
)
from plaudit_client import stream as feedback_streams
from tests.clients.scripted import Failure, Script

Code = grpc.StatusCode


async def test_a_reply_streams_and_then_tells_all(client: AsyncClient) -> None:
    reply = client.chat("hello there", logprobs=True)
    assert (reply.text, reply.receipt, reply.finish_reason) == ("", "", None)
    assert [text async for text in reply] == ["HELLO ", "THERE "]
    assert reply.text == "HELLO THERE "
    assert (reply.receipt, reply.policy_version, reply.response_id) == ("receipt-1", "v0", "response-1")
    assert (reply.finish_reason, reply.usage) == (FinishReason.STOP, Usage(7, 3))
    assert reply.tokens == [Token(5, -0.5), Token(5, -0.5)]


async def test_everything_said_reaches_the_server(client: AsyncClient, script: Script) -> None:
    await client.chat(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
        ],
        temperature=0,
        top_p=0.5,
        max_tokens=4,
        seed=0,
        stop="\n",
        user_id="ada",
        conversation_id="c",
        policy_version="v0",
        logprobs=True,
    ).read()
    (request,) = script.chats
    assert [(message.role, message.content) for message in request.messages] == [
        (Role.ROLE_SYSTEM, "Be kind."),
        (Role.ROLE_USER, "Hi"),
    ]
    sampling = request.sampling
    assert sampling.HasField("temperature")
    assert sampling.HasField("seed")
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed) == (0, 0.5, 4, 0)
    assert list(sampling.stop) == ["\n"]
    assert (request.user_id, request.conversation_id, request.policy_version, request.logprobs) == (
        "ada",
        "c",
        "v0",
        True,
    )


async def test_what_is_not_said_is_the_servers_to_choose(client: AsyncClient, script: Script) -> None:
    await client.chat("Hi").read()
    sampling = script.chats[0].sampling
    assert not any(sampling.HasField(name) for name in ("temperature", "top_p", "max_tokens", "seed"))


async def test_a_reply_is_read_once(client: AsyncClient) -> None:
    reply = client.chat("Hi")
    assert await reply.read() == "HI "
    with pytest.raises(RuntimeError, match="only once"):
        await reply.read()


async def test_leaving_the_loop_frees_the_slot(client: AsyncClient, script: Script) -> None:
    script.endless = True
    reply = client.chat("Hi")
    async for _ in reply:
        break
    gc.collect()  # not needed on CPython, where the loop's generator goes with the loop
    await asyncio.wait_for(script.freed.wait(), 5)
    await asyncio.sleep(0)
    assert reply.finish_reason is FinishReason.CANCELLED
    assert reply.text == "HI "


@pytest.mark.parametrize("leave", ["cancel", "aclose", "async with", "task"])
async def test_every_way_of_leaving_frees_the_slot(client: AsyncClient, script: Script, leave: str) -> None:
    script.endless = True
    reply = client.chat("Hi")
    reading = asyncio.create_task(reply.read())
    await asyncio.wait_for(script.streaming.wait(), 5)
    await asyncio.sleep(0.05)
    if leave == "cancel":
        reply.cancel()
        assert (await reading).startswith("HI more")  # the reader goes on: it is the reply that was cancelled
    elif leave == "aclose":
        async with aclosing(reply):
            pass
        await reading
    elif leave == "async with":
        async with reply:
            pass
        await reading
    else:
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    await asyncio.wait_for(script.freed.wait(), 5)
    assert reply.finish_reason is FinishReason.CANCELLED


async def test_cancelling_changes_no_reply_that_has_ended(client: AsyncClient) -> None:
    reply = client.chat("Hi")
    await reply.read()
    reply.cancel()
    assert reply.finish_reason is FinishReason.STOP


async def test_a_reply_cancelled_before_it_began_asks_nothing(client: AsyncClient, script: Script) -> None:
    reply = client.chat("Hi")
    await reply.aclose()
    assert await reply.read() == ""
    assert script.chats == []


async def test_a_stream_that_breaks_off_is_no_reply(client: AsyncClient, script: Script) -> None:
    script.truncated = True
    with pytest.raises(ServerError, match="broke off"):
        await client.chat("Hi").read()


async def test_votes_carry_the_receipt_the_user_and_a_key(client: AsyncClient, script: Script) -> None:
    first, second = client.chat("a", user_id="ada"), client.chat("b", user_id="ada")
    await first.read()
    await second.read()
    assert await first.thumbs_up() is Durability.EVENT_LOG
    await first.thumbs_down(aspect="politeness")
    await second.prefer_over(first)
    assert await second.retract(aspect="relevance") is Durability.OUTBOX
    up, down, preference = script.feedback
    assert (up.receipt, up.thumb, up.aspect, up.user_id) == ("receipt-1", Thumb.THUMB_UP, "", "ada")
    assert (down.thumb, down.aspect) == (Thumb.THUMB_DOWN, "politeness")
    assert (preference.receipt, preference.preference.over_receipt) == ("receipt-2", "receipt-1")
    (retraction,) = script.retractions
    assert (retraction.receipt, retraction.aspect, retraction.user_id) == ("receipt-2", "relevance", "ada")
    keys = {request.idempotency_key for request in script.feedback} | {retraction.idempotency_key}
    assert len(keys) == 4
    assert "" not in keys


async def test_ratings_and_comments(client: AsyncClient, script: Script) -> None:
    await client.submit_feedback("r", rating=5)
    await client.submit_feedback("r", comment="so so", idempotency_key="mine")
    assert [(request.rating, request.comment) for request in script.feedback] == [(5, ""), (0, "so so")]
    assert script.feedback[1].idempotency_key == "mine"


async def test_there_is_no_vote_before_the_reply_has_started(client: AsyncClient) -> None:
    with pytest.raises(RuntimeError, match="not started"):
        await client.chat("Hi").thumbs_up()


async def test_a_vote_insists_with_the_same_key(client: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.UNAVAILABLE)] * 2
    await client.submit_feedback("r", thumb="up")
    assert len(script.feedback) == 3
    assert len({request.idempotency_key for request in script.feedback}) == 1


async def test_a_vote_does_not_insist_for_ever(address: str, script: Script) -> None:
    script.failures = [Failure(Code.UNAVAILABLE)] * 50
    async with AsyncClient(address, keep_feedback=0) as client:
        with pytest.raises(Unavailable):
            await client.retract_feedback("r")
    assert len(script.retractions) == 5


async def test_a_broken_stream_goes_on_with_what_is_not_settled(client: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.UNAVAILABLE)] * 3
    statements = [Statement("r", rating=number, idempotency_key=f"k{number}") for number in range(1, 6)]
    answers = [settled async for settled in client.stream_feedback(statements)]
    assert [answer.count for answer in answers] == [1, 2, 3, 4, 5]
    assert answers[-1].in_event_log == 5
    assert [request.idempotency_key for request in script.feedback] == ["k1", "k2", "k3", "k4", "k5"]


async def test_a_stream_does_not_insist_for_ever(once: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.RESOURCE_EXHAUSTED, retry_after=1.5)]
    stream = once.stream_feedback([Statement("r", rating=number) for number in (1, 2)])
    assert (await anext(stream)).count == 1
    with pytest.raises(ResourceExhausted):
        await anext(stream)


async def test_a_refused_vote_is_not_repeated(client: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.FAILED_PRECONDITION, "the receipt has expired")]
    with pytest.raises(FailedPrecondition, match="expired"):
        await client.submit_feedback("r", thumb="up")
    assert len(script.feedback) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Code.INVALID_ARGUMENT, InvalidRequest),
        (Code.NOT_FOUND, NotFound),
        (Code.FAILED_PRECONDITION, FailedPrecondition),
        (Code.RESOURCE_EXHAUSTED, ResourceExhausted),
        (Code.UNAVAILABLE, Unavailable),
        (Code.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Code.CANCELLED, Cancelled),
        (Code.INTERNAL, ServerError),
        (Code.UNAUTHENTICATED, Unauthenticated),
        (Code.PERMISSION_DENIED, PermissionDenied),
        (Code.DATA_LOSS, ServerError),
    ],
)
async def test_each_code_has_its_exception(
    once: AsyncClient, script: Script, code: grpc.StatusCode, error: type[PlauditError]
) -> None:
    script.failures = [Failure(code), Failure(code)]
    for call in (once.chat("Hi").read(), once.list_policies()):
        with pytest.raises(error) as caught:
            await call
        assert type(caught.value) is error
        assert caught.value.code == code.name
        assert str(caught.value) == "the server says why"


async def test_a_stream_that_ends_while_something_is_sent_is_one_that_broke(
    client: AsyncClient, script: Script
) -> None:
    # grpc.aio says so itself, now and then; the server's own status is lost.
    script.failures = [Failure(Code.INTERNAL, "Internal error from Core")]
    answers = [settled async for settled in client.stream_feedback([Statement("r", rating=1, idempotency_key="k")])]
    assert answers[-1].in_event_log == 1


async def test_a_stream_that_nothing_opens_begins_all_the_same(
    client: AsyncClient, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback_streams, "_OPENING", 0.1)
    script.opens = False
    statements = [Statement("r", rating=number, idempotency_key=f"k{number}") for number in (1, 2, 3)]
    answers = [settled async for settled in client.stream_feedback(statements)]
    assert answers[-1].in_event_log == 3


async def test_a_wrong_field_is_named(client: AsyncClient, script: Script) -> None:
    violations = (("sampling.top_p", "is 3; it must be above 0 and at most 1"), ("user_id", "is too long"))
    script.failures = [Failure(Code.INVALID_ARGUMENT, violations=violations)]
    with pytest.raises(InvalidRequest) as caught:
        await client.chat("Hi").read()
    assert (caught.value.field, caught.value.message) == violations[0]
    assert caught.value.violations == violations
    assert str(caught.value) == "sampling.top_p: is 3; it must be above 0 and at most 1; user_id: is too long"


async def test_a_full_server_says_when_to_come_back(once: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.RESOURCE_EXHAUSTED, retry_after=1.5)]
    with pytest.raises(ResourceExhausted) as caught:
        await once.chat("Hi").read()
    assert caught.value.retry_after == 1.5


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": "x", "max_tokens": -1}, "sampling.max_tokens"),
        ({"messages": "x", "seed": 2**32}, "sampling.seed"),
        ({"messages": "x", "stop": ["ok", "\udfff"]}, "sampling.stop[1]"),
        ({"messages": "x", "user_id": "\ud800"}, "user_id"),
    ],
)
async def test_what_cannot_be_sent_is_refused_at_once(
    client: AsyncClient, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.chat(**arguments)
    assert caught.value.field == field


@pytest.mark.parametrize("verdict", [{}, {"thumb": "up", "rating": 3}, {"thumb": "sideways"}, {"rating": -1}])
async def test_a_vote_says_one_thing(client: AsyncClient, script: Script, verdict: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await client.submit_feedback("r", **verdict)
    assert script.feedback == []


async def test_a_comment_is_as_long_as_the_contract_says(client: AsyncClient, script: Script) -> None:
    """A much longer one would be refused by gRPC, which names no field."""
    with pytest.raises(InvalidRequest, match="comment: has 4,097 bytes; the most is 4,096") as caught:
        await client.submit_feedback("r", comment="é" * 2048 + "x")
    assert (caught.value.field, script.feedback) == ("comment", [])
    await client.submit_feedback("r", comment="é" * 2048)


async def test_a_deadline_is_kept(client: AsyncClient, script: Script) -> None:
    script.endless = True
    with pytest.raises(DeadlineExceeded):
        await client.chat("Hi", timeout=0.2).read()
    await asyncio.wait_for(script.freed.wait(), 5)


async def test_nothing_answers() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"^nothing answers at 127\.0\.0\.1:1 \(connection refused\)$"):
            await client.chat("Hi").read()
        with pytest.raises(Unavailable):
            await client.healthy()


async def test_policies(client: AsyncClient, script: Script) -> None:
    answer = await client.list_policies()
    assert [policy.version for policy in answer.policies] == ["v0", "v1"]
    assert (answer.serving_version, answer.loaded_versions) == ("v0", ("v0", "v1"))
    base, newest = answer.policies
    assert (base.state, base.changed_at) == ("retired", None)
    assert newest.changed_at is not None
    assert (newest.state, newest.metrics, newest.changed_at.isoformat()) == (
        "stable",
        {"kl": 0.5},
        "2026-11-23T12:00:00+00:00",
    )
    assert base.checks == ()
    assert newest.checks == (
        GateCheck("reward", 0.25, 0.125, 0.2, upper=False, kept=True),
        GateCheck("longer", 80.5, 50.0, 75.0, upper=True, kept=False),
    )
    assert (await client.get_policy("v1")).version == "v1"
    with pytest.raises(NotFound, match="no version v9"):
        await client.get_policy("v9")
    canary = await client.set_canary_share("v2", 0.1, "try it")
    assert (canary.version, canary.state, canary.share) == ("v2", "canary", 0.1)
    with pytest.raises(InvalidRequest, match="0 to below 1"):
        await client.set_canary_share("v2", 1.0)
    watching = client.watch_policies()
    seen = [await anext(watching), await anext(watching)]
    assert [(policy.version, policy.share) for policy in seen] == [("v1", 0.0), ("v2", 0.1)]
    with pytest.raises(Unavailable, match="stopping"):
        await anext(watching)
    script.reasons.clear()
    await client.promote_policy("v1", "good")
    with pytest.raises(FailedPrecondition):
        await client.promote_policy("v2")
    policy, serving = await client.rollback_policy(reason="bad")
    assert (policy.version, policy.state, serving) == ("v1", "rolled back", "v0")
    assert script.reasons == ["good", "", "bad"]


async def test_health(client: AsyncClient) -> None:
    assert await client.healthy()


def test_a_client_wants_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncClient("127.0.0.1:1")


async def test_another_callers_client_shares_the_connections(client: AsyncClient, script: Script) -> None:
    other = client.with_api_key("of-another-caller")
    async with other:
        script.failures = [Failure(grpc.StatusCode.FAILED_PRECONDITION)]
        with pytest.raises(FailedPrecondition):
            await other.submit_feedback("r", thumb="up")
    assert await other.chat("still there").read() == "STILL THERE ", "closing it closed nothing"
    assert await client.chat("so am I").read() == "SO AM I "
    with pytest.raises(InvalidRequest):
        client.with_api_key("no key")
