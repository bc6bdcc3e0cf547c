"""Simulated users against a scripted server: order, noise, waits, skips, and patience."""

from __future__ import annotations

import dataclasses

import grpc
import pytest

from plaudit.v1.feedback_pb2 import Thumb
from plaudit_cli import pace, personas
from plaudit_cli.common import CommandError
from plaudit_cli.personas import Persona
from plaudit_cli.prompts import Prompt, user
from plaudit_cli.simulation import Simulation, Vote, approval, run
from plaudit_cli.tally import Summary
from plaudit_client import AsyncClient, InvalidRequest, PlauditError, ServerError, Unavailable
from tests.clients.scripted import Failure, Script

Code = grpc.StatusCode
PROMPTS = [user(f"prompt {number}") for number in range(6)]
TOO_LONG = Failure(Code.INVALID_ARGUMENT, violations=(("messages", "have 9000 tokens; the most is 2000"),))


class Everything(Persona):
    name = "everything"
    description = "likes everything"

    def approval(self, prompt: str, reply: str, finished: bool) -> float:
        return 1.0


class Faulty(Everything):
    def approval(self, prompt: str, reply: str, finished: bool) -> float:
        return 1.5


def said(script: Script) -> list[tuple[str, int, str, int]]:
    voted = [(request.user_id, request.thumb) for request in script.feedback]
    return [
        (request.messages[-1].content, request.sampling.seed, *vote)
        for request, vote in zip(script.chats, voted, strict=True)
    ]


async def test_a_seed_is_an_order(client: AsyncClient, script: Script) -> None:
    simulation = Simulation(12, concurrency=1, noise=0.5, seed=3)
    outcomes = []
    for seed in (3, 3, 4):
        await run(client, personas.load("brief"), PROMPTS, dataclasses.replace(simulation, seed=seed))
        outcomes.append(said(script))
        script.chats, script.feedback = [], []
    first, again, other = outcomes
    assert first == again
    assert first != other
    texts = [prompt for prompt, *_ in first]
    assert sorted(texts[:6]) == sorted(texts[6:]) == [prompt.text for prompt in PROMPTS]  # each once, then again
    assert len({seed for _, seed, *_ in first}) == 12  # the second reply to a prompt is another one


async def test_votes_are_cast_by_named_users_and_counted(client: AsyncClient, script: Script) -> None:
    votes: list[Vote] = []

    def watch(vote: Vote, summary: Summary) -> None:
        votes.append(vote)
        assert summary.votes == len(votes)

    simulation = Simulation(40, noise=0.25, users=3)
    summary = await run(client, Everything(), PROMPTS, simulation, watch=watch)
    assert {request.user_id for request in script.feedback} == {f"sim-everything-{number}" for number in range(3)}
    assert all(request.idempotency_key for request in script.feedback)
    tally = summary.versions["v0"]
    assert tally.up == sum(request.thumb == Thumb.THUMB_UP for request in script.feedback)
    assert (tally.votes, tally.true_rate, summary.skipped, summary.retries) == (40, 1.0, 0, 0)
    assert 0 < tally.down < 20
    assert sorted(vote.conversation for vote in votes) == list(range(40))
    assert {(vote.version, vote.finished, vote.approval) for vote in votes} == {("v0", True, 1.0)}
    assert {vote.reply for vote in votes} == {f"{prompt.text.upper()} " for prompt in PROMPTS}


async def test_it_waits_for_what_was_learnt(
    client: AsyncClient, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_POLL", 0.01)
    script.votes_per_version = 10
    notes: list[str] = []
    summary = await run(client, Everything(), PROMPTS, Simulation(40, votes_per_version=10), note=notes.append)
    assert {version: tally.votes for version, tally in summary.versions.items()} == {
        f"v{number}": 10 for number in range(4)
    }
    assert summary.vain_waits == 0
    assert notes[:2] == ["10 votes on v0: waiting for a newer version", "v1 answers"]


async def test_it_does_not_wait_for_ever(client: AsyncClient, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_POLL", 0.01)
    simulation = Simulation(10, votes_per_version=4, wait=0.05)
    summary = await run(client, Everything(), PROMPTS, simulation)
    assert summary.versions["v0"].votes == 10
    assert summary.vain_waits == 2


async def test_nobody_waits_while_a_canary_is_on_trial(client: AsyncClient, script: Script) -> None:
    script.canary = 0.5
    notes: list[str] = []
    simulation = Simulation(10, votes_per_version=2, wait=60)
    summary = await run(client, Everything(), PROMPTS, simulation, note=notes.append)
    assert (summary.votes, summary.vain_waits, notes) == (10, 0, [])
    assert len({request.conversation_id for request in script.chats}) == 10, "each is drawn for itself"


async def test_a_pinned_version_waits_for_nothing(client: AsyncClient, script: Script) -> None:
    simulation = Simulation(6, votes_per_version=2, policy_version="v7")
    summary = await run(client, Everything(), PROMPTS, simulation)
    assert list(summary.versions) == ["v7"]


async def test_prompts_too_long_are_skipped(client: AsyncClient, script: Script) -> None:
    script.failures = [TOO_LONG, dataclasses.replace(TOO_LONG, violations=(("messages[0].content", "is too long"),))]
    summary = await run(client, Everything(), PROMPTS, Simulation(6, concurrency=1))
    assert (summary.votes, summary.skipped, summary.conversations) == (4, 2, 6)


async def test_other_wrong_requests_end_it(client: AsyncClient, script: Script) -> None:
    script.failures = [Failure(Code.INVALID_ARGUMENT, violations=(("sampling.max_tokens", "is too large"),))]
    with pytest.raises(InvalidRequest, match=r"sampling\.max_tokens"):
        await run(client, Everything(), PROMPTS, Simulation(6))


async def test_a_busy_or_restarting_server_is_given_time(once: AsyncClient, script: Script) -> None:
    summary = await run(once, Everything(), PROMPTS, Simulation(1))
    script.failures = [Failure(Code.RESOURCE_EXHAUSTED, retry_after=0.01)]
    summary = await run(once, Everything(), PROMPTS, Simulation(2, concurrency=1))
    assert (summary.votes, summary.retries) == (2, 1)

    def fall_ill(vote: Vote, summary: Summary) -> None:
        script.failures = [Failure(Code.UNAVAILABLE)] * 2 if vote.conversation == 0 else []

    summary = await run(once, Everything(), PROMPTS, Simulation(2, concurrency=1), watch=fall_ill)
    assert (summary.votes, summary.retries) == (2, 2)


async def test_a_server_that_never_answered_is_not_waited_for() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable):
            await run(client, Everything(), PROMPTS, Simulation(2))


@pytest.mark.parametrize(
    ("persona", "failures", "error"),
    [(Faulty(), [], CommandError), (Everything(), [Failure(Code.INTERNAL)], ServerError)],
)
async def test_one_failure_ends_all(
    client: AsyncClient,
    script: Script,
    persona: Persona,
    failures: list[Failure],
    error: type[CommandError] | type[PlauditError],
) -> None:
    script.failures = failures
    with pytest.raises(error):
        await run(client, persona, PROMPTS, Simulation(50))
    assert len(script.feedback) < 50


async def test_true_approval_votes_on_nothing(client: AsyncClient, script: Script) -> None:
    prompts: list[Prompt] = [user("short"), user("word " * 60)]
    measured = await approval(client, personas.load("brief"), prompts, "v3", 6, concurrency=2)
    assert script.feedback == []
    assert {request.policy_version for request in script.chats} == {"v3"}
    assert (measured.version, measured.samples, measured.skipped) == ("v3", 6, 0)
    assert measured.by_prompt[prompts[0].key] > 0.9
    assert measured.by_prompt[prompts[1].key] < 0.1
    assert measured.mean == pytest.approx(sum(measured.by_prompt.values()) / 2)


async def test_true_approval_skips_prompts_too_long(client: AsyncClient, script: Script) -> None:
    script.failures = [TOO_LONG]
    measured = await approval(client, Everything(), PROMPTS, "v0", 6, concurrency=1)
    assert (measured.samples, measured.skipped) == (5, 1)
