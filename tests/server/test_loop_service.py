"""LoopService: what the event log says of the loop reaches whoever watches, and never stands in serving's way."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise

import pytest

from plaudit.events import POLICIES, PROGRESS, Record, open_log
from plaudit.v1.events_pb2 import Progress
from plaudit.v1.loop_pb2 import LearnerReport, RoundReport
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_client import AsyncClient, Loop, ResourceExhausted, Unavailable
from plaudit_server.picture import Picture
from tests.fixtures_server import Deployment


def report(deployment: Deployment, *reports: LearnerReport | RoundReport | bytes) -> None:
    """As the learner does."""
    records = []
    for said in reports:
        if isinstance(said, bytes):
            records.append(Record(PROGRESS, "torn", said))
        elif isinstance(said, RoundReport):
            progress = Progress(schema_version=1, round=said)
            records.append(Record(PROGRESS, f"round-{said.number}", progress.SerializeToString()))
        else:
            progress = Progress(schema_version=1, learner=said)
            records.append(Record(PROGRESS, "learner", progress.SerializeToString()))
    with open_log(deployment.event_log) as log:
        log.append(records)


async def until(loops: AsyncIterator[Loop], stage: str) -> Loop:
    async with asyncio.timeout(30):
        async for loop in loops:
            if loop.learner is not None and loop.learner.stage == stage:
                return loop
    raise AssertionError("the watch ended")


def a_learner(stage: str) -> LearnerReport:
    learner = LearnerReport(stage=stage, lag=3, new_votes=12, votes_per_round=40)
    learner.time.FromSeconds(1_800_000_100)
    learner.stage_since.FromSeconds(1_800_000_000)
    learner.approvals.add(policy_version="v0", up=6, down=2, low=0.41, high=0.93)
    learner.buckets.add(seconds=60, policy_version="v0", up=6, down=2).start.FromSeconds(1_799_999_940)
    return learner


def a_round(number: int, updates: int) -> RoundReport:
    round_ = RoundReport(number=number, parent="v0", reference="v0", votes=40, updates_planned=5, kl_budget=0.5)
    round_.heads.add(aspect="quality", auc=0.8, accuracy=0.75, ece=math.nan, judgements=40)
    for update in range(1, updates + 1):
        round_.updates.add(number=update, reward=0.1 * update, kl=0.05 * update, entropy=2.0, reply_length=20.0)
    return round_


async def test_who_watches_sees_the_loop_change(client: AsyncClient, deployment: Deployment) -> None:
    empty = await client.get_loop()
    assert (empty.learner, empty.rounds, empty.releases) == (None, (), ())
    async with aclosing(client.watch_loop()) as loops:
        assert await anext(loops) == empty, "the first comes at once"
        report(deployment, b"\xff\xff torn", a_round(2, 1), a_round(1, 5), a_learner("improving"))
        loop = await until(loops, "improving")
        learner = loop.learner
        assert learner is not None
        assert (learner.lag, learner.new_votes, learner.votes_per_round) == (3, 12, 40)
        assert learner.approvals[0].rate == 0.75
        assert learner.buckets[0].up == 6
        assert [(r.number, len(r.updates), r.ended_at, r.version, r.outcome) for r in loop.rounds] == [
            (1, 5, None, "", ""),
            (2, 1, None, "", ""),
        ]
        assert math.isnan(loop.rounds[0].heads[0].ece)

        deployment.publish("v1", seed=1)
        done = a_round(2, 5)
        done.version, done.outcome, done.reason = "v1", PolicyState.POLICY_STATE_STABLE, "passed the gate"
        done.ended_at.FromSeconds(1_800_000_200)
        report(deployment, done, a_learner("waiting"))
        loop = await until(loops, "waiting")
        assert (loop.rounds[-1].outcome, loop.rounds[-1].reason) == ("stable", "passed the gate")
        assert len(loop.rounds[-1].updates) == 5
        assert [(step.policy_version, step.state, step.actor) for step in loop.releases] == [
            ("v1", "candidate", "learner"),
            ("v1", "stable", "learner"),
        ]
        await client.rollback_policy("v1", "people dislike it")
        async with asyncio.timeout(30):
            while len(loop.releases) < 3:
                loop = await anext(loops)
        assert (loop.releases[-1].state, loop.releases[-1].actor) == ("rolled back", "operator")
        assert loop.releases[-1].reason == "people dislike it"
    assert (await client.get_loop()).releases == loop.releases


async def test_a_step_said_again_is_one_step_and_a_later_server_sees_all(deployment: Deployment) -> None:
    deployment.publish("v1", seed=1)
    with open_log(deployment.event_log) as log:
        again = [Record(POLICIES, entry.key, entry.value) for entry in log.read({(POLICIES, 0): 0})]
        log.append(again)
    report(deployment, *(a_round(number, 1) for number in range(1, 106)), a_learner("waiting"))
    async with deployment.client() as client, aclosing(client.watch_loop()) as loops:
        loop = await until(loops, "waiting")
    assert [step.state for step in loop.releases] == ["candidate", "stable"]
    assert [round_.number for round_ in loop.rounds] == list(range(6, 106))


async def test_watchers_are_bounded_and_told_when_the_server_stops(deployment: Deployment) -> None:
    async with deployment.running(max_watchers=1) as (public, control):
        client = AsyncClient(public, control=control)
        first = client.watch_loop()
        await anext(first)
        with pytest.raises(ResourceExhausted, match="GetLoop"):
            await anext(client.watch_loop())
        report(deployment, a_learner("waiting"))
        assert (await until(first, "waiting")).learner is not None
        ended = asyncio.create_task(anext(first))
    with pytest.raises(Unavailable, match="stopping"):
        await ended
    await client.close()


async def test_news_come_at_most_once_a_second(client: AsyncClient, deployment: Deployment) -> None:
    seen = []
    loop = asyncio.get_running_loop()
    async with aclosing(client.watch_loop()) as loops:
        for number in range(12):
            report(deployment, a_round(1, number), a_learner(f"stage {number}"))
        async with asyncio.timeout(30):
            async for each in loops:
                seen.append(loop.time())
                if each.learner is not None and each.learner.stage == "stage 11":
                    break
    assert all(later - earlier > 0.9 for earlier, later in pairwise(seen))


async def test_serving_goes_on_whatever_happens_to_the_picture(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Picture, entry: object) -> None:
        raise RuntimeError("nobody foresaw it")

    monkeypatch.setattr(Picture, "_take", broken)
    report(deployment, a_learner("waiting"))
    async with deployment.client() as client:
        async with asyncio.timeout(30):
            while "how the loop goes cannot be read" not in caplog.text:
                await asyncio.sleep(0.02)
        assert await client.chat("hello", max_tokens=2).read()
        assert (await client.get_loop()).learner is None
