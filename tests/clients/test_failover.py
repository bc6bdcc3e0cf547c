"""Several real servers: one is drained, and nobody notices; one is away, and no vote on its replies is lost."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from plaudit.broker import free_port
from plaudit.events import FEEDBACK, from_beginning, open_log
from plaudit.v1.events_pb2 import Feedback
from plaudit_client import AsyncClient, Durability
from tests.fixtures_server import Deployment


def recorded(deployment: Deployment) -> list[Feedback]:
    with open_log(deployment.event_log) as log:
        return [Feedback.FromString(entry.value) for entry in log.read(from_beginning(log, FEEDBACK))]


async def test_a_server_is_drained_and_no_chat_and_no_vote_fails(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "plaudit_client")  # says why something was kept
    async with AsyncExitStack() as stack, AsyncExitStack() as first:
        one = await first.enter_async_context(deployment.server("server-0"))
        two = await stack.enter_async_context(deployment.server("server-1"))
        client = await stack.enter_async_context(AsyncClient(f"{one},{two}"))
        ended, going = 0, True

        async def talk() -> None:
            nonlocal ended
            while going:
                reply = client.chat("hello", max_tokens=8)
                assert await reply.read()
                assert await reply.thumbs_up() is not Durability.PENDING
                ended += 1

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(talk())
            while ended < 6:
                await asyncio.sleep(0.01)
            await first.aclose()
            after = ended
            while ended < after + 6:
                await asyncio.sleep(0.01)
            going = False
        # One that was cut off may be in the log twice, under one key.
        assert len({record.feedback_id for record in recorded(deployment)}) == ended


async def test_a_vote_while_the_server_is_away_counts_once_when_it_is_back(
    deployment: Deployment, tmp_path: Path
) -> None:
    address, file = f"127.0.0.1:{free_port()}", tmp_path / "votes.sqlite"
    async with deployment.server(listen=address), AsyncClient(address) as client:
        said = [client.chat("hello", max_tokens=4, user_id="ann") for _ in range(2)]
        for reply in said:
            await reply.read()
    async with AsyncClient(address, feedback_file=file, max_retries=0) as client:
        assert await client.submit_feedback(said[0].receipt, thumb="up", user_id="ann") is Durability.PENDING
        assert await client.submit_feedback(said[0].receipt, thumb="down", user_id="ann") is Durability.PENDING
        assert await client.retract_feedback(said[1].receipt, user_id="ann") is Durability.PENDING
        assert client.pending_feedback == 3
    assert file.stat().st_mode & 0o077 == 0, "it names users, and holds their receipts"
    # A program that is started again, and another one with the same file.
    async with (
        AsyncClient(address, feedback_file=file) as client,
        AsyncClient(address, feedback_file=file) as other,
        deployment.server(listen=address),
    ):
        async with asyncio.timeout(30):
            told = await asyncio.gather(client.flush_feedback(), other.flush_feedback())
        assert (client.pending_feedback, other.pending_feedback) == (0, 0)
        assert sum(flushed.delivered for flushed in told) >= 3
        assert not any(flushed.refused for flushed in told)
        keys = [record.feedback_id for record in recorded(deployment)]
        in_order = list(dict.fromkeys(keys))
        assert len(in_order) == 3, "twice in the log, perhaps, but under the same keys"
        thumbs = {record.feedback_id: record.WhichOneof("verdict") for record in recorded(deployment)}
        assert [thumbs[key] for key in in_order][:2] == ["thumb", "thumb"]
