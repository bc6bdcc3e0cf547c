"""`plaudit erase` against a real server, and what the learner then makes of the log."""

from __future__ import annotations

import asyncio
from pathlib import Path

from plaudit.events import ERASURES, FEEDBACK, from_beginning, open_log
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_client import AsyncClient
from plaudit_learner.experience.intake import Intake
from plaudit_learner.experience.store import Experience
from tests.clients.conftest import Run
from tests.fixtures_server import Deployment


async def say(client: AsyncClient, text: str, user: str) -> str:
    """Chat and vote as a user; returns the receipt."""
    reply = client.chat(text, max_tokens=4, user_id=user)
    await reply.read()
    await reply.thumbs_up()
    assert reply.receipt
    return reply.receipt


async def test_what_was_said_is_gone_and_what_is_said_later_counts(
    run: Run, deployment: Deployment, tmp_path: Path
) -> None:
    async with deployment.client() as client:
        old = await say(client, "one", "ann")
        await say(client, "two", "bob")
        outcome = await run("erase", "ann", "--yes", "--reason", "asked", server=client.control)
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.startswith("erased until 2")
        assert outcome.out.endswith("(event log); the learner follows\n")
        await client.submit_feedback(old, thumb="down")  # on what is no longer there
        await say(client, "three", "ann")
    store = Experience(tmp_path / "experience.sqlite", keep=100)
    try:
        with open_log(deployment.event_log) as log:
            intake = Intake(log, store)
            intake.start()
            intake.drain(0)
        assert len(store.prompts(100)) == 2
        assert store.count_votes("quality") == 2
    finally:
        store.close()


async def test_it_asks_first_and_says_what_is_wrong(run: Run, deployment: Deployment) -> None:
    async with deployment.running() as (_, address):
        outcome = await run("erase", "ann", stdin="n\n", server=address)
        assert (outcome.code, "It cannot be undone" in outcome.out) == (1, True)
        outcome = await run("erase", "ann\udcff", "--yes", server=address)  # a byte that is no UTF-8
        assert outcome.code == 1
        assert outcome.err.strip().endswith("user_id: is not valid Unicode text")
        outcome = await run("erase", " ", "--yes", server=address)
        assert (outcome.code, outcome.err) == (1, "plaudit: user_id: is empty; give 1 to 256 bytes of text\n")
        with open_log(deployment.event_log) as log:
            assert not log.read(from_beginning(log, ERASURES, FEEDBACK))
        outcome = await run("erase", "ann", stdin="y\n", server=address)
        assert outcome.code == 0


async def test_failures_are_shown(run: Run, deployment: Deployment) -> None:
    sha256 = deployment.publish("v1", seed=1, announce=False)
    async with deployment.client() as client:
        (deployment.root / "versions" / "v1" / "adapter_model.safetensors").unlink()
        deployment.announce("v1", PolicyState.POLICY_STATE_STABLE, parent="v0", manifest_sha256=sha256)
        while not (await client.list_policies()).failures:
            await asyncio.sleep(0.02)
        outcome = await run("policies", "list", server=client.control)
    assert outcome.code == 0
    assert "\nv1 cannot be served here: version v1: " in outcome.out
