"""The loop in small, nothing left out: `plaudit up`, Kafka over TCP, two servers, simulated users, real learning."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from bench.deployment import Deployment, running, serves, until_operable, until_round, until_served
from plaudit_cli import personas
from plaudit_cli.prompts import Prompt, split, user
from plaudit_cli.simulation import Simulation, approval, run
from plaudit_learner.metrics import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.timeout(600)]

WORDS = ["alpha", "beta", "gamma", "delta", "river", "stone", "cloud", "tree", "bird", "fish", "moon", "star", "wind"]
TRAIN, HELD_OUT = split([user(f"{first} {second}") for first in WORDS for second in WORDS if first < second], 0.3)
KL_BUDGET = 1.5
OPTIONS = (
    "--engine=torch",
    "--kafka",
    "--server-option=max-context=512",
    "--server-option=max-tokens=256",
    "--learner-option=votes-per-round=150",
    "--learner-option=iterations=7",
    f"--learner-option=kl-budget={KL_BUDGET}",
    "--learner-option=canary-share=0",  # served at once; a canary's trial is a test of its own
)

BRIEF = personas.load("brief")


async def true_approval(deployment: Deployment, prompts: list[Prompt], version: str) -> tuple[float, float]:
    measured = await approval(deployment.clients[0], BRIEF, prompts, version, 300, max_tokens=24, temperature=1.0)
    return measured.mean, measured.standard_error


async def until_metric(
    deployment: Deployment, name: str, expected: dict[tuple[str, ...], float], program: int = 0
) -> None:
    """Wait until a program shows these samples: it takes in records by and by, and may have to start first, which a
    learner on busy cores, to all of which it gives way, does late."""
    async with asyncio.timeout(240):
        while True:
            with suppress(OSError):
                if deployment.metric(name, program) == expected:
                    return
            await asyncio.sleep(0.05)


async def test_votes_become_a_better_version_on_all_servers(tmp_path: Path, tiny_model: Path) -> None:
    async with running(tmp_path, *OPTIONS, f"--model={tiny_model}", servers=2) as deployment:
        client = deployment.clients[0]
        before, before_error = await true_approval(deployment, HELD_OUT, "v0")
        simulation = Simulation(conversations=150, max_tokens=24, temperature=1.0)
        summary = await run(client, BRIEF, TRAIN, simulation)
        assert summary.votes == 150

        policies = await until_round(client, 1, 300)
        announced = next(policy for policy in policies.policies if policy.version == "v1")
        assert announced.state == "stable", announced.reason
        assert announced.metrics["kl"] <= KL_BUDGET
        assert announced.metrics["votes"] == 150

        # Every vote was counted once: the learner's figures are those of the users.
        (tally,) = summary.versions.values()
        await until_metric(deployment, "plaudit_votes", {("v0", "up"): tally.up, ("v0", "down"): tally.down})
        assert deployment.metric("plaudit_event_log_lag") == {(): 0.0}

        # What the learner tells of itself reaches whoever asks any server.
        for each in deployment.clients:
            async with asyncio.timeout(60):
                while not (rounds := (await each.get_loop()).rounds) or rounds[-1].ended_at is None:
                    await asyncio.sleep(0.1)
            loop = await each.get_loop()
            (round_,) = loop.rounds
            assert (round_.version, round_.outcome, round_.votes) == ("v1", "stable", 150)
            assert [update.number for update in round_.updates] == list(range(1, len(round_.updates) + 1))
            assert max(update.kl for update in round_.updates) > 0
            assert [(step.policy_version, step.state) for step in loop.releases] == [("v1", "stable")]
            assert loop.learner is not None
            (told,) = loop.learner.approvals
            assert (told.policy_version, told.up, told.down) == ("v0", tally.up, tally.down)
            assert sum(bucket.up + bucket.down for bucket in loop.learner.buckets) == 150

        # The version that servers report is the one that was announced, and the one that answers.
        for index, each in enumerate(deployment.clients):
            await until_served(each, "v1")
            reply = each.chat("hello", max_tokens=4)
            await reply.read()
            assert reply.policy_version == "v1"
            assert deployment.metric("plaudit_version_served", 1 + index) == {("v1",): 1.0}

        # So does the gateway, before both servers.
        async with httpx.AsyncClient(base_url=deployment.gateway, timeout=30) as http:
            hello = {"model": "plaudit", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
            answers = [(await http.post("/v1/chat/completions", json=hello)).json() for _ in range(2)]
            assert [answer["model"] for answer in answers] == ["v1", "v1"]

        after, after_error = await true_approval(deployment, HELD_OUT, "v1")
        noise = (before_error**2 + after_error**2) ** 0.5
        assert after - before > 3 * noise, f"{before:.3f} → {after:.3f} ± {noise:.3f}"


async def test_killed_programs_come_back_and_nothing_is_lost(tmp_path: Path, tiny_model: Path) -> None:
    # SQLite here: the embedded broker keeps its log in memory, and is not one of those that are killed.
    options = [option for option in OPTIONS if option != "--kafka"]
    async with running(tmp_path, *options, f"--model={tiny_model}") as deployment:
        client = deployment.clients[0]
        first = await run(client, BRIEF, TRAIN, Simulation(conversations=150, max_tokens=24, temperature=1.0))
        await until_metric(
            deployment, "plaudit_learner_stage", {(stage,): float(stage == "improving") for stage in STAGES}
        )
        deployment.process("plaudit_learner.app").kill()  # in the middle of its round
        policies = await until_round(client, 1, 300)
        assert [policy.version for policy in policies.policies] == ["v0", "v1"], "the round was done once"
        await until_served(client, "v1")

        deployment.process("plaudit_server.app").kill()
        async with asyncio.timeout(60):
            while await serves(client):
                await asyncio.sleep(0.05)
            while not await serves(client):
                await asyncio.sleep(0.1)
        await until_operable(client)
        again = await client.list_policies()
        assert again.serving_version == "v1", "it finds the current version by itself"
        (tally,) = first.versions.values()
        await until_metric(deployment, "plaudit_votes", {("v0", "up"): tally.up, ("v0", "down"): tally.down})

    # Stopped as a whole and started again: it continues.
    async with running(tmp_path, *options, f"--model={tiny_model}") as deployment:
        client = deployment.clients[0]
        assert (await client.list_policies()).serving_version == "v1"
        reply = client.chat("hello", max_tokens=4)
        await reply.read()
        await reply.thumbs_up()
        expected: dict[tuple[str, ...], float] = {("v0", "up"): tally.up, ("v0", "down"): tally.down}
        expected |= {(reply.policy_version, "up"): 1.0, (reply.policy_version, "down"): 0.0}
        await until_metric(deployment, "plaudit_votes", expected)
    assert deployment.up.returncode == 0, "SIGTERM ends all of it cleanly"
