"""SubmitFeedback and RetractFeedback against a running server."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status

from plaudit.broker import free_port
from plaudit.events import FEEDBACK, from_beginning, open_log
from plaudit.v1 import feedback_pb2_grpc
from plaudit.v1.events_pb2 import Feedback
from plaudit.v1.feedback_pb2 import (
    Durability,
    Preference,
    RetractFeedbackRequest,
    SubmitFeedbackRequest,
    Thumb,
)
from plaudit_client import AsyncClient, ResourceExhausted, Statement
from plaudit_client import Durability as ClientDurability
from plaudit_server.receipts import Receipts, signing_keys
from tests.fixtures_server import Deployment

UP, DOWN = Thumb.THUMB_UP, Thumb.THUMB_DOWN


@pytest.fixture
def receipts(deployment: Deployment) -> Receipts:
    return deployment.receipts()


def written(deployment: Deployment) -> list[Feedback]:
    with open_log(deployment.event_log) as log:
        return [Feedback.FromString(entry.value) for entry in log.read(from_beginning(log, FEEDBACK))]


async def refusal(address: str, request: SubmitFeedbackRequest | RetractFeedbackRequest) -> tuple[str, str, str]:
    """(code, field, description) with which the request is refused."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
        call = (
            stub.SubmitFeedback(request)
            if isinstance(request, SubmitFeedbackRequest)
            else stub.RetractFeedback(request)
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
    details = BadRequest()
    assert rpc_status.from_call(refused.value).details[0].Unpack(details)
    (violation,) = details.field_violations
    return refused.value.code().name, violation.field, violation.description


async def test_a_vote_is_durable_when_it_is_acknowledged(client: AsyncClient, deployment: Deployment) -> None:
    reply = client.chat("hello", max_tokens=4, user_id="ann")
    await reply.read()
    assert await reply.thumbs_up() is ClientDurability.EVENT_LOG
    (record,) = written(deployment)
    assert record.response_id == reply.response_id
    assert record.policy_version == "v0"
    assert record.thumb == UP
    assert record.aspect == "quality"
    assert len(record.user) == 32
    assert record.feedback_id


async def test_every_kind_of_statement_is_recorded_as_said(
    address: str, deployment: Deployment, receipts: Receipts
) -> None:
    receipt, other = receipts.issue("r1", "v2", ""), receipts.issue("r2", "v2", "")
    requests = [
        SubmitFeedbackRequest(receipt=receipt, thumb=DOWN, idempotency_key="k1", user_id="ann"),
        SubmitFeedbackRequest(receipt=receipt, rating=4, aspect="politeness"),
        SubmitFeedbackRequest(receipt=receipt, preference=Preference(over_receipt=other)),
        SubmitFeedbackRequest(receipt=receipt, comment="too long"),
    ]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
        for request in requests:
            assert (await stub.SubmitFeedback(request)).durability == Durability.DURABILITY_EVENT_LOG
        await stub.RetractFeedback(RetractFeedbackRequest(receipt=receipt))
    records = written(deployment)
    assert [record.WhichOneof("verdict") for record in records] == [
        "thumb",
        "rating",
        "preferred_over",
        "comment",
        "retraction",
    ]
    assert records[0].feedback_id == "k1"
    assert records[1].aspect == "politeness"
    assert records[2].preferred_over == "r2"
    assert {record.response_id for record in records} == {"r1"}
    assert len({record.feedback_id for record in records}) == len(records)


async def test_bad_statements_are_refused_by_field_and_in_words(address: str, receipts: Receipts) -> None:
    good = receipts.issue("r1", "v1", "")
    bad: list[tuple[SubmitFeedbackRequest | RetractFeedbackRequest, str, str]] = [
        (SubmitFeedbackRequest(thumb=UP), "receipt", "is missing"),
        (SubmitFeedbackRequest(receipt="made up", thumb=UP), "receipt", "not a receipt of this deployment"),
        (SubmitFeedbackRequest(receipt="x" * 3000, thumb=UP), "receipt", "no receipt has more than 2048"),
        (SubmitFeedbackRequest(receipt=good), "verdict", "give one of thumb, rating, preference or comment"),
        (SubmitFeedbackRequest(receipt=good, thumb=0), "thumb", "THUMB_UP or THUMB_DOWN"),  # type: ignore[arg-type]
        (SubmitFeedbackRequest(receipt=good, thumb=7), "thumb", "THUMB_UP or THUMB_DOWN"),  # type: ignore[arg-type]
        (SubmitFeedbackRequest(receipt=good, rating=0), "rating", "1 (worst) to 5 (best)"),
        (SubmitFeedbackRequest(receipt=good, rating=6), "rating", "1 (worst) to 5 (best)"),
        (SubmitFeedbackRequest(receipt=good, comment=" "), "comment", "is empty"),
        (SubmitFeedbackRequest(receipt=good, comment="x" * 4097), "comment", "the most is 4,096"),
        (SubmitFeedbackRequest(receipt=good, thumb=UP, aspect="beauty"), "aspect", "quality, relevance, politeness"),
        (SubmitFeedbackRequest(receipt=good, thumb=UP, user_id="u" * 257), "user_id", "the most is 256"),
        (SubmitFeedbackRequest(receipt=good, thumb=UP, idempotency_key="k" * 129), "idempotency_key", "most is 128"),
        (SubmitFeedbackRequest(receipt=good, preference=Preference()), "preference.over_receipt", "is missing"),
        (
            SubmitFeedbackRequest(receipt=good, preference=Preference(over_receipt=good)),
            "preference.over_receipt",
            "same reply",
        ),
        (RetractFeedbackRequest(), "receipt", "is missing"),
        (RetractFeedbackRequest(receipt=good, aspect="beauty"), "aspect", "quality, relevance, politeness"),
    ]
    for request, field, words in bad:
        code, named, description = await refusal(address, request)
        assert (code, named) == ("INVALID_ARGUMENT", field)
        assert words in description


async def test_a_forged_and_an_expired_receipt(address: str, deployment: Deployment) -> None:
    keys = signing_keys(deployment.root / "receipt.key")
    forged = Receipts(lambda: [b"another key"], 60).issue("r1", "v1", "")
    assert (await refusal(address, SubmitFeedbackRequest(receipt=forged, thumb=UP)))[0] == "INVALID_ARGUMENT"
    expired = Receipts(lambda: keys, 60, clock=lambda: time.time() - 100).issue("r1", "v1", "")
    code, field, words = await refusal(address, SubmitFeedbackRequest(receipt=expired, thumb=UP))
    assert (code, field) == ("FAILED_PRECONDITION", "receipt")
    assert "expired" in words


async def test_a_receipt_given_to_a_user_is_that_users(address: str, deployment: Deployment) -> None:
    async with AsyncClient(address) as client:
        reply = client.chat("hello", max_tokens=2, user_id="ann")
        await reply.read()
    code, field, _ = await refusal(address, SubmitFeedbackRequest(receipt=reply.receipt, thumb=UP, user_id="bob"))
    assert (code, field) == ("INVALID_ARGUMENT", "user_id")
    async with AsyncClient(address) as client:
        await client.submit_feedback(reply.receipt, thumb="up")  # whoever holds it votes for that user
        await client.submit_feedback(reply.receipt, thumb="down", user_id="ann")
    records = written(deployment)
    assert len({record.user for record in records}) == 1


async def test_so_it_is_in_preferences_retractions_and_streams(
    address: str, deployment: Deployment, receipts: Receipts
) -> None:
    anns, bobs = (receipts.issue(f"r-{name}", "v0", deployment.pseudonym(name)) for name in ("ann", "bob"))
    for said in ("ann", ""):
        over = SubmitFeedbackRequest(receipt=anns, preference=Preference(over_receipt=bobs), user_id=said)
        code, field, words = await refusal(address, over)
        assert (code, field) == ("INVALID_ARGUMENT", "preference.over_receipt")
        assert "another user's reply" in words
    code, field, _ = await refusal(address, RetractFeedbackRequest(receipt=anns, user_id="bob"))
    assert (code, field) == ("INVALID_ARGUMENT", "user_id")
    statements = [
        Statement(anns, thumb="up", user_id="bob"),
        Statement(anns, retraction=True, user_id="bob"),
        Statement(anns, preferred_over=bobs, user_id="ann"),
        Statement(anns, thumb="up", user_id="ann"),
    ]
    async with AsyncClient(address) as client:
        *_, settled = [settled async for settled in client.stream_feedback(statements)]
    assert (settled.count, settled.refused) == (4, 3)
    (record,) = written(deployment)
    assert (record.response_id, record.user) == ("r-ann", deployment.pseudonym("ann"))


async def test_any_server_of_the_deployment_takes_the_vote(deployment: Deployment, tmp_path: Path) -> None:
    async with deployment.server("server-0") as first, deployment.server("server-1") as second:
        async with AsyncClient(first) as client:
            reply = client.chat("hello", max_tokens=2)
            await reply.read()
        async with AsyncClient(second) as client:
            await client.submit_feedback(reply.receipt, thumb="up")
    assert [record.response_id for record in written(deployment)] == [reply.response_id]


async def test_with_the_log_away_and_the_outbox_full_chat_goes_on_and_votes_are_told_when_to_come_back(
    deployment: Deployment,
) -> None:
    metrics_port = free_port()

    def metric(name: str) -> float:
        with urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    async with (
        deployment.server(outbox_limit=3, metrics_port=metrics_port) as address,
        AsyncClient(address, max_retries=0, keep_feedback=0) as client,
    ):
        with closing(sqlite3.connect(deployment.root / "events.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # nobody can write to the log
            replies = [client.chat("hello", max_tokens=4) for _ in range(4)]
            assert all([await reply.read() for reply in replies[:2]])
            assert await replies[0].thumbs_up() is ClientDurability.OUTBOX
            assert all([await reply.read() for reply in replies[2:]]), "chat goes on"
            with pytest.raises(ResourceExhausted, match="already holds 3") as full:
                await replies[0].thumbs_up()
            assert full.value.retry_after == pytest.approx(5)
            assert await asyncio.to_thread(metric, "plaudit_interactions_lost_total") == 2
            assert await asyncio.to_thread(metric, "plaudit_outbox_depth") == 3
            assert await asyncio.to_thread(metric, "plaudit_outbox_oldest_seconds") > 0
        async with asyncio.timeout(30):
            while await asyncio.to_thread(metric, "plaudit_outbox_depth"):
                await asyncio.sleep(0.05)
        assert await replies[1].thumbs_up() is ClientDurability.EVENT_LOG
    assert {record.response_id for record in written(deployment)} == {replies[0].response_id, replies[1].response_id}
