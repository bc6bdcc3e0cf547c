"""A version that was learnt goes on trial, and the votes of simulated users decide about it, nothing left out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.trace import Span as OtelSpan

from bench.deployment import running, until_served
from plaudit_cli import personas
from plaudit_cli.prompts import user
from plaudit_cli.simulation import Simulation, run
from plaudit_client import AsyncClient, Policy
from tests.fixtures_traces import Collector, Spans, collector

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


def trace_id(span: Span | Span.Link) -> str:
    return span.trace_id.hex()


async def until_traced(taken: Collector, vote: OtelSpan) -> None:
    """From one vote to the span of the round that learnt from it, from that to the version's load, and its release."""
    server, learner = "plaudit-server", "plaudit-learner"
    async with asyncio.timeout(60):  # spans are sent by and by
        while not taken.named(learner, "canary decision"):
            await asyncio.sleep(0.1)
        while not taken.named(server, "load v1"):
            await asyncio.sleep(0.1)
    (said,) = [
        span
        for span in taken.named(server, "plaudit.v1.FeedbackService/SubmitFeedback")
        if trace_id(span) == f"{vote.get_span_context().trace_id:032x}"
    ]
    rounds = [span for span in taken.named(learner, "round") if said.span_id in {link.span_id for link in span.links}]
    (this,) = rounds
    for made_of_it in (*taken.named(server, "load v1"), *taken.named(learner, "canary decision")):
        (link,) = made_of_it.links
        assert (link.trace_id, link.span_id) == (this.trace_id, this.span_id)
    below = {span.name for name in PARTS for span in taken.named(learner, name) if span.parent_span_id == this.span_id}
    assert below == set(PARTS)


PARTS = ("reward model", "reference rollouts", "PPO update", "gate", "publish")


async def test_votes_decide_about_what_was_learnt(
    tmp_path: Path, tiny_model: Path, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a trace leads from a vote to the version that came of it."""
    with collector() as taken:
        for name, value in taken.environment.items():
            monkeypatch.setenv(name, value)
        await votes_decide(tmp_path, tiny_model, spans, taken)


async def votes_decide(tmp_path: Path, tiny_model: Path, spans: Spans, taken: Collector) -> None:
    brief = personas.load("brief")
    async with running(tmp_path, *OPTIONS, f"--model={tiny_model}") as deployment:
        client = deployment.clients[0]
        await run(client, brief, PROMPTS, Simulation(149, max_tokens=24, temperature=1.0))
        with spans.tracer.start_as_current_span("one who votes") as voting:
            reply = client.chat("river bird", max_tokens=24, temperature=1.0, user_id="ann")
            await reply.read()
            await reply.thumbs_up()
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
        assert deployment.metric("plaudit_canary_decisions_total") == {("promote",): 1.0, ("roll back",): 0.0}
        await until_served(client, "v1")
        await until_traced(taken, voting)
    assert "on trial" in (tmp_path / "up.log").read_text()
