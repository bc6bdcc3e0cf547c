"""A version that was learnt goes on trial, and the votes of simulated users decide about it, nothing left out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.deployment import running
from plaudit_cli import personas
from plaudit_cli.prompts import user
from plaudit_cli.simulation import Simulation, run
from plaudit_client import AsyncClient, Policy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORDS = ["alpha", "beta", "gamma", "delta", "river", "stone", "cloud", "tree", "bird", "fish", "moon", "star", "wind"]
PROMPTS = [user(f"{first} {second}") for first in WORDS for second in WORDS if first < second]
OPTIONS = (
    "--engine=torch",
    "--server-option=max-context=512",
    "--server-option=max-tokens=256",
    "--learner-option=votes-per-round=150",
    "--learner-option=iterations=7",
    "--learner-option=kl-budget=1.5",
    "--learner-option=canary-most-votes=40",
)


async def until_state(client: AsyncClient, version: str, *states: str) -> Policy:
    async with asyncio.timeout(300):
        async for policy in client.watch_policies():
            if policy.version == version and policy.state in states:
                return policy
    raise AssertionError("a watch has no end")


async def test_votes_decide_about_what_was_learnt(tmp_path: Path, tiny_model: Path) -> None:
    brief = personas.load("brief")
    async with running(tmp_path, *OPTIONS, f"--model={tiny_model}") as deployment:
        client = deployment.clients[0]
        await run(client, brief, PROMPTS, Simulation(150, max_tokens=24, temperature=1.0))
        canary = await until_state(client, "v1", "canary", "rejected")
        assert canary.state == "canary", canary.reason
        assert canary.share == 0.5
        async with asyncio.timeout(30):
            while "v1" not in (await client.list_policies()).loaded_versions:
                await asyncio.sleep(0.1)
        summary = await run(client, brief, PROMPTS, Simulation(160, seed=1, max_tokens=24, temperature=1.0))
        decided = await until_state(client, "v1", "stable", "rolled back")
        assert decided.state == "stable", decided.reason
        assert decided.metrics["canary_votes"] >= 16
        assert set(summary.versions) == {"v0", "v1"}
        assert deployment.metric("plaudit_canary_decisions_total") == {("promote",): 1.0}
        async with asyncio.timeout(30):
            while (await client.list_policies()).serving_version != "v1":
                await asyncio.sleep(0.1)
    assert "on trial" in (tmp_path / "up.log").read_text()
