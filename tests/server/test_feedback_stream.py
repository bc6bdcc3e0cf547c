"""StreamFeedback: many statements, each as durable as one alone; through breaks, refusals and a full outbox."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from plaudit.broker import free_port
from plaudit.events import FEEDBACK, from_beginning, open_log
from plaudit.v1.events_pb2 import Feedback
from plaudit.v1.feedback_pb2 import Durability, StreamFeedbackRequest, StreamFeedbackResponse
from plaudit_client import (
    AsyncClient,
    InvalidRequest,
    RefusedStatement,
    ResourceExhausted,
    Settled,
    Statement,
    Unavailable,
)
from plaudit_server.feedback_stream import IN_FLIGHT, FeedbackStream
from plaudit_server.receipts import Receipts
from tests.fixtures_server import Deployment


@pytest.fixture
def receipts(deployment: Deployment) -> Receipts:
    return deployment.receipts()


def votes(receipts: Receipts, count: int) -> list[Statement]:
    return [
        Statement(receipts.issue(f"r{number}", "v1", ""), thumb="up", idempotency_key=f"k{number}")
        for number in range(count)
    ]


def written(deployment: Deployment) -> list[Feedback]:
    with open_log(deployment.event_log) as log:
        return [Feedback.FromString(entry.value) for entry in log.read(from_beginning(log, FEEDBACK), limit=10**6)]


async def until_written(deployment: Deployment, count: int) -> None:
    """Wait until exactly these votes are in the log: on a busy machine they may go by way of the outbox."""
    async with asyncio.timeout(30):
        while {record.feedback_id for record in written(deployment)} != {f"k{number}" for number in range(count)}:
            await asyncio.sleep(0.1)


async def test_one_bad_statement_does_not_lose_the_others(
    client: AsyncClient, deployment: Deployment, receipts: Receipts
) -> None:
    good = receipts.issue("r", "v1", "")
    statements = [
        *votes(receipts, 3),
        Statement("made up", thumb="up"),
        Statement(good, rating=6),
        Statement(good, rating=4, user_id="ann", aspect="politeness"),
        Statement(good, retraction=True, user_id="ann"),
        Statement(good, comment="long", aspect="beauty"),
    ]
    answers = [settled async for settled in client.stream_feedback(statements)]
    assert [answer.count for answer in answers] == sorted({answer.count for answer in answers})
    last = answers[-1]
    assert (last.count, last.in_event_log, last.in_outbox, last.refused) == (8, 5, 0, 3)
    refusals = [refusal for answer in answers for refusal in answer.refusals]
    assert [(refusal.index, refusal.field) for refusal in refusals] == [(3, "receipt"), (4, "rating"), (7, "aspect")]
    assert "1 (worst) to 5 (best)" in refusals[1].reason
    records = written(deployment)
    assert [record.WhichOneof("verdict") for record in records] == ["thumb"] * 3 + ["rating", "retraction"]
    assert [record.feedback_id for record in records[:3]] == ["k0", "k1", "k2"]
    assert records[3].user == records[4].user != ""
    assert len({record.feedback_id for record in records}) == 5


async def test_of_very_many_bad_ones_the_first_are_told_and_all_are_counted(client: AsyncClient) -> None:
    answers = [
        settled async for settled in client.stream_feedback(Statement("made up", thumb="up") for _ in range(250))
    ]
    assert (answers[-1].count, answers[-1].refused) == (250, 250)
    assert [refusal.index for answer in answers for refusal in answer.refusals] == list(range(100))


async def test_nothing_to_say(client: AsyncClient) -> None:
    assert [settled async for settled in client.stream_feedback([])] == []


async def test_a_stream_goes_on_where_it_was_when_its_server_is_replaced(
    deployment: Deployment, receipts: Receipts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plaudit_client.retry._FIRST_PAUSE", 2.0)  # a server takes its time on a busy machine
    listen, going_on = f"127.0.0.1:{free_port()}", asyncio.Event()

    async def statements() -> AsyncIterator[Statement]:
        for number, vote in enumerate(votes(receipts, 3000)):
            if number == 1500:
                await going_on.wait()
            yield vote

    settled = Settled()
    async with AsyncClient(listen) as client:
        stream = client.stream_feedback(statements())
        async with deployment.server(listen=listen):
            while settled.count < 1000:
                settled = await anext(stream)
        going_on.set()
        async with deployment.server(listen=listen):
            *_, settled = [settled async for settled in stream]
            await until_written(deployment, 3000)
    assert (settled.count, settled.in_event_log + settled.in_outbox, settled.refused) == (3000, 3000, 0)


async def test_what_was_settled_before_the_outbox_was_full_is_told(deployment: Deployment, receipts: Receipts) -> None:
    settled = Settled()

    async def last_of(stream: AsyncIterator[Settled]) -> None:
        nonlocal settled
        async for settled in stream:  # noqa: B007 - what was told before the failure is asked for
            pass

    async with deployment.client(outbox_limit=10) as client:
        with closing(sqlite3.connect(deployment.root / "events.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # nobody can write to the log
            stream = client.stream_feedback(votes(receipts, 50))
            with pytest.raises(ResourceExhausted) as full:
                await last_of(stream)
            assert full.value.retry_after is not None
            assert (settled.count, settled.in_outbox) == (10, 10)


async def test_no_server_is_unavailable(receipts: Receipts) -> None:
    async with AsyncClient(f"127.0.0.1:{free_port()}") as client:
        with pytest.raises(Unavailable):
            async for _ in client.stream_feedback(votes(receipts, 2)):
                pass


async def test_the_callers_own_failure_is_raised_after_what_came_before_it(
    client: AsyncClient, deployment: Deployment, receipts: Receipts
) -> None:
    async def statements() -> AsyncIterator[Statement]:
        for vote in votes(receipts, 5):
            yield vote
        raise LookupError("the caller's source")

    with pytest.raises(LookupError):
        async for _ in client.stream_feedback(statements()):
            pass
    await until_written(deployment, 5)


def test_a_statement_says_one_thing() -> None:
    with pytest.raises(InvalidRequest, match="exactly one"):
        Statement("receipt", thumb="up", rating=3)
    with pytest.raises(InvalidRequest, match="exactly one"):
        Statement("receipt", thumb="up", retraction=True)
    assert RefusedStatement(0, "thumb", "") != RefusedStatement(1, "thumb", "")


async def test_the_server_reads_no_further_ahead_than_it_says() -> None:
    begun: list[asyncio.Task[Durability.ValueType]] = []
    answers: list[int] = []
    durable = asyncio.Event()

    async def write() -> Durability.ValueType:
        await durable.wait()
        return Durability.DURABILITY_EVENT_LOG

    def accept(_: StreamFeedbackRequest) -> asyncio.Task[Durability.ValueType]:
        begun.append(asyncio.create_task(write()))
        if len(begun) == IN_FLIGHT:
            full.set()
        return begun[-1]

    async def requests() -> AsyncIterator[StreamFeedbackRequest]:
        for _ in range(3 * IN_FLIGHT):
            yield StreamFeedbackRequest()

    async def answer(response: StreamFeedbackResponse) -> None:
        answers.append(response.settled)

    full = asyncio.Event()

    running = asyncio.create_task(FeedbackStream(accept, answer, lambda: 0.0).run(requests()))
    async with asyncio.timeout(10):
        await full.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        assert (len(begun), answers) == (IN_FLIGHT, [])
        durable.set()
        await running
    assert len(begun) == answers[-1] == 3 * IN_FLIGHT
    assert len(answers) < 100, "one answer for all that settled meanwhile"
