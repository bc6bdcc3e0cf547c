"""Feedback that no server can take is kept, bounded, in order, and said to be so; nothing is dropped in silence."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import pytest

from plaudit_client import (
    AsyncClient,
    Durability,
    FailedPrecondition,
    Flushed,
    RequestTooLarge,
    ResourceExhausted,
    Settled,
    Statement,
    Unavailable,
)
from plaudit_client.retry import MAX_RETRIES
from tests.clients.scripted import Failure, Script, serving

Code = grpc.StatusCode
AWAY = Failure(Code.UNAVAILABLE)


def keys(script: Script) -> list[str]:
    """Of what was taken, as it came."""
    return [request.idempotency_key for request in script.feedback]


@asynccontextmanager
async def away(script: Script, client: AsyncClient) -> AsyncIterator[None]:
    """The server takes nothing meanwhile; what it was asked is forgotten."""
    script.failures = [AWAY] * 1000
    try:
        yield
    finally:
        script.failures = []
        script.feedback.clear()


async def test_it_is_sent_later_in_the_order_in_which_it_was_said(address: str, script: Script) -> None:
    async with AsyncClient(address, max_retries=0) as client:
        async with away(script, client):
            for number in range(5):
                said = await client.submit_feedback("r", rating=number, idempotency_key=f"k{number}")
                assert said is Durability.PENDING
            assert client.pending_feedback == 5
        assert await client.flush_feedback(20) == Flushed(delivered=5, pending=0, refused=())
        assert keys(script) == [f"k{number}" for number in range(5)]
        assert await client.flush_feedback(0.1) == Flushed(0, 0, ())
        assert await client.submit_feedback("r", rating=1) is Durability.EVENT_LOG, "directly, as before"


async def test_it_is_sent_by_itself(address: str, script: Script) -> None:
    async with AsyncClient(address, max_retries=0) as client:
        script.failures = [AWAY] * 2
        assert await client.submit_feedback("r", thumb="up") is Durability.PENDING
        async with asyncio.timeout(20):
            while client.pending_feedback:
                await asyncio.sleep(0.02)
        assert len(script.feedback) == 3
        assert len(set(keys(script))) == 1


async def test_nothing_overtakes_what_is_kept(address: str, script: Script) -> None:
    """A changed mind must not be heard before the mind that it changes."""
    async with AsyncClient(address, max_retries=0) as client:
        async with away(script, client):
            await client.submit_feedback("r", thumb="up", idempotency_key="first")
        assert await client.submit_feedback("r", thumb="down", idempotency_key="second") is Durability.PENDING
        await client.flush_feedback(20)
        assert keys(script) == ["first", "second"]


@pytest.mark.parametrize("anothers", [False, True], ids=["one client", "another caller's"])
async def test_nothing_overtakes_what_is_tried_again(client: AsyncClient, script: Script, anothers: bool) -> None:
    """The mind is changed while the server, which is busy, is waited for; other replies' votes do not wait for that."""
    teller = client.with_api_key("plaudit_ann") if anothers else client
    script.failures = [Failure(Code.UNAVAILABLE, retry_after=1.0)]
    first = asyncio.create_task(teller.submit_feedback("r", thumb="up", idempotency_key="first"))
    async with asyncio.timeout(10):
        while script.failures:
            await asyncio.sleep(0.01)
    second = asyncio.create_task(client.retract_feedback("r", idempotency_key="second"))
    await client.submit_feedback("other", thumb="up", idempotency_key="other")
    assert (keys(script), script.retractions) == (["first", "other"], [])
    assert not second.done()
    assert await first is Durability.EVENT_LOG
    await second
    assert keys(script) == ["first", "other", "first"]
    assert not client._kept.turns, "nobody waits"


async def test_who_gives_up_lets_the_next_one_go(client: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.UNAVAILABLE, retry_after=9.0)]
    first = asyncio.create_task(client.submit_feedback("r", thumb="up"))
    async with asyncio.timeout(8):
        while script.failures:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(client.submit_feedback("r", thumb="down"))
        first.cancel()
        assert await second is Durability.EVENT_LOG


LARGE = "r" * (5 << 20)
"""A receipt that makes a message larger than what gRPC takes: 4 MiB, where no server says otherwise."""


async def test_what_is_too_large_is_raised_and_not_kept(client: AsyncClient, script: Script) -> None:
    with pytest.raises(RequestTooLarge, match="message larger than max"):
        await client.submit_feedback(LARGE, thumb="up")
    script.failures = [Failure(Code.RESOURCE_EXHAUSTED)]
    with pytest.raises(ResourceExhausted):
        await client.submit_feedback("r", thumb="up")
    assert client.pending_feedback == 0
    assert await client.submit_feedback("r", thumb="up") is Durability.EVENT_LOG


async def test_what_turns_out_to_be_too_large_holds_up_nothing(script: Script, tmp_path: Path) -> None:
    """It was kept while nothing answered, so nobody had said so."""
    file = tmp_path / "votes.sqlite"
    async with AsyncClient("127.0.0.1:1", max_retries=0, feedback_file=file) as client:
        assert await client.submit_feedback(LARGE, thumb="up", idempotency_key="large") is Durability.PENDING
        assert await client.submit_feedback("r", thumb="up", idempotency_key="next") is Durability.PENDING
    async with serving(script) as address, AsyncClient(address, feedback_file=file) as client:
        flushed = await client.flush_feedback(20)
        assert (flushed.delivered, flushed.pending) == (1, 0)
        assert [(refused.idempotency_key, refused.receipt) for refused in flushed.refused] == [("large", LARGE)]
    assert keys(script) == ["next"]


async def test_what_a_server_fails_on_holds_up_its_own_reply_only(address: str, script: Script) -> None:
    """A proxy that answers a broken server's INTERNAL, say, for one statement again and again."""
    async with AsyncClient(address, max_retries=0) as client:
        async with away(script, client):
            for key, receipt in (("up", "r"), ("down", "r"), ("another's", "s")):
                await client.submit_feedback(receipt, thumb="up", idempotency_key=key)
        script.failures = [Failure(Code.INTERNAL)]
        assert await client.flush_feedback(20) == Flushed(3, 0, ())
    assert keys(script) == ["up", "another's", "up", "down"]


async def test_a_server_that_fails_on_everything_is_left_alone_for_a_while(address: str, script: Script) -> None:
    async with AsyncClient(address, max_retries=0) as client:
        async with away(script, client):
            for number in range(20):
                await client.submit_feedback(f"r{number}", thumb="up")
        script.failures = [Failure(Code.UNKNOWN)] * 8
        assert await client.flush_feedback(20) == Flushed(20, 0, ())
    assert len(keys(script)) == 28
    assert keys(script)[8:] == keys(script)[:8] + keys(script)[16:]


async def test_a_stream_names_what_is_too_large(client: AsyncClient) -> None:
    small = [Statement("r", thumb="up") for _ in range(3)]
    stream = client.stream_feedback([*small, Statement(LARGE, thumb="up"), *small])
    with pytest.raises(RequestTooLarge, match=r"^statement 3 \(the first is 0\) has 5,242,\d\d\d bytes: .*than max"):
        await _end(stream)


async def _end(settled: AsyncIterator[Settled]) -> None:
    async for _ in settled:
        pass


async def test_what_grpc_has_no_call_for_is_kept(script: Script) -> None:
    """It gives no time, as for what is too large; but as soon as another call has ended there is one."""
    script.endless = True
    async with serving(script, calls=1) as address, AsyncClient(address, max_retries=0) as client:
        reply = client.chat("Hi")
        async for _ in reply:
            assert await client.submit_feedback("r", thumb="up", idempotency_key="k") is Durability.PENDING
            break
        reply.cancel()
        assert await client.flush_feedback(20) == Flushed(1, 0, ())
    assert keys(script) == ["k"]


async def test_what_cannot_be_kept_is_refused_at_once(address: str, script: Script) -> None:
    async with AsyncClient(address, max_retries=0, keep_feedback=2) as client:
        async with away(script, client):
            for _ in range(2):
                assert await client.submit_feedback("r", thumb="up") is Durability.PENDING
            with pytest.raises(Unavailable, match="2 statements are kept already"):
                await client.submit_feedback("r", thumb="up")
            assert client.pending_feedback == 2
        await client.flush_feedback(20)


async def test_what_is_refused_later_is_told(address: str, script: Script, caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncClient(address, max_retries=0) as client:
        async with away(script, client):
            for number in range(2):
                await client.submit_feedback(f"r{number}", thumb="up", idempotency_key=f"k{number}")
        script.failures = [Failure(Code.FAILED_PRECONDITION, "the receipt has expired")]
        flushed = await client.flush_feedback(20)
    assert (flushed.delivered, flushed.pending) == (1, 0)
    (refused,) = flushed.refused
    assert (refused.receipt, refused.idempotency_key, refused.reason) == ("r0", "k0", "the receipt has expired")
    assert "the receipt has expired" in caplog.text


async def test_what_is_wrong_is_not_kept(address: str, script: Script) -> None:
    async with AsyncClient(address) as client:
        script.failures = [Failure(Code.FAILED_PRECONDITION, "the receipt has expired")]
        with pytest.raises(FailedPrecondition):
            await client.submit_feedback("r", thumb="up")
        assert client.pending_feedback == 0


async def test_a_flush_ends_in_time(address: str, script: Script) -> None:
    async with AsyncClient(address, max_retries=0) as client:
        async with away(script, client):
            await client.retract_feedback("r")
            assert await client.flush_feedback(0.3) == Flushed(0, 1, ())
        await client.flush_feedback(20)


async def test_closing_is_the_last_chance(address: str, script: Script) -> None:
    async with AsyncClient(address, max_retries=0) as client:
        async with away(script, client):
            await client.submit_feedback("r", thumb="up", idempotency_key="k")
    assert keys(script) == ["k"]


async def test_what_is_lost_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit_client.kept._LAST_CHANCE", 0.2)
    async with AsyncClient("127.0.0.1:1", max_retries=0) as client:
        assert await client.submit_feedback("r", thumb="up") is Durability.PENDING
    assert "feedback that could not be sent and is lost: 1 statements" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_a_file_outlives_its_client(script: Script, tmp_path: Path) -> None:
    file = tmp_path / "votes.sqlite"
    async with AsyncClient("127.0.0.1:1", max_retries=0, feedback_file=file) as client:
        await client.submit_feedback("r", thumb="up", idempotency_key="first")
        await client.retract_feedback("r", idempotency_key="second")
    async with serving(script) as address, AsyncClient(address, feedback_file=file) as client:
        assert client.pending_feedback in {1, 2}
        async with asyncio.timeout(20):
            while client.pending_feedback:  # without being asked to
                await asyncio.sleep(0.02)
    assert keys(script) == ["first"]
    assert [retraction.idempotency_key for retraction in script.retractions] == ["second"]
    with closing(sqlite3.connect(file)) as rows:
        assert rows.execute("SELECT count(*) FROM statements").fetchone() == (0,)


async def test_a_file_that_is_no_file_of_ours_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "votes"
    file.write_text("something else, and long enough not to be taken for an empty database" * 10)
    with pytest.raises(Exception, match="feedback_file"):
        AsyncClient("127.0.0.1:1", feedback_file=file)
    assert file.read_text().startswith("something else")


async def test_a_file_that_is_locked_is_said_to_be(address: str, tmp_path: Path) -> None:
    file = tmp_path / "votes.sqlite"
    async with AsyncClient(address, feedback_file=file) as client:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(Unavailable, match="feedback_file: it cannot be read just now: database is locked"):
                await client.submit_feedback("r", thumb="up")
        assert await client.submit_feedback("r", thumb="up") is Durability.EVENT_LOG


async def test_retries_come_first(client: AsyncClient, script: Script) -> None:
    script.failures = [AWAY] * MAX_RETRIES
    assert await client.submit_feedback("r", thumb="up") is Durability.EVENT_LOG
