"""Simulated users at work: `run` lets them chat and vote, `approval` asks what they truly think of one version.

    conversation i:  prompt ─▶ chat ─▶ taste ─▶ noisy thumb

Every prompt is used once, in an order of the seed, then all again in another. Which conversations are held, by whom and
with which sampling seed is a function of the seed alone. Workers take them in turn; `Pace` stands before them and holds
them back while enough was voted on the version that serves.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass

from plaudit_cli.common import CommandError
from plaudit_cli.pace import Pace, Patience
from plaudit_cli.personas import Persona
from plaudit_cli.prompts import Prompt
from plaudit_cli.tally import Approval, Summary, Tally
from plaudit_client import AsyncClient, FinishReason, InvalidRequest, Reply


@dataclass(frozen=True, slots=True)
class Simulation:
    """How to simulate."""

    conversations: int
    concurrency: int = 4
    noise: float = 0.1
    """Share of votes that are flipped."""
    seed: int = 0
    max_tokens: int = 48
    temperature: float = 0.7
    users: int = 20
    """How many user ids vote: one voter's influence is capped, so a single one would teach little."""
    policy_version: str = ""
    """Empty: what the server chooses."""
    votes_per_version: int = 0
    """After so many conversations on one version, wait for a newer one; 0: never wait."""
    wait: float = 600.0
    """Seconds to wait at most; then as many again are held on the same version."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One vote, as it was sent; made by `run`, read by displays and files."""

    conversation: int
    version: str
    user: str
    prompt: str
    reply: str
    finished: bool
    approval: float
    """The persona's true approval of the reply."""
    up: bool
    """What it voted."""
    response_id: str


async def run(
    client: AsyncClient,
    persona: Persona,
    prompts: Sequence[Prompt],
    simulation: Simulation,
    *,
    watch: Callable[[Vote, Summary], None] = lambda vote, summary: None,
    note: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Hold the conversations and vote.

    `watch` sees each vote once the server has acknowledged it; `note` is told of waits. Prompts that are too long for
    the server are counted and skipped. A server that is busy or away is given two minutes. Raises PlauditError, or
    CommandError if the persona is faulty; conversations still running are then cancelled.
    """
    started = time.monotonic()
    summary = Summary()
    patience = Patience(summary)
    # A pinned version stays what it is: there is nothing to wait for.
    allowance = 0 if simulation.policy_version else simulation.votes_per_version
    pace = Pace(
        client,
        votes_per_version=allowance,
        wait=simulation.wait,
        summary=summary,
        patience=patience,
        note=note,
    )
    users = _Users(client, persona, simulation, patience)
    conversations = zip(range(simulation.conversations), _endlessly(prompts, simulation.seed), strict=False)

    async def converse() -> None:
        for index, prompt in conversations:  # shared by all workers: each takes the next
            await pace.admit()
            vote = await users.converse(index, prompt)
            if vote is None:
                summary.skipped += 1
                continue
            pace.saw(vote.version)
            summary.versions.setdefault(vote.version, Tally()).add(vote.up, vote.approval)
            summary.seconds = time.monotonic() - started
            watch(vote, summary)

    await _together(converse, simulation.concurrency)
    summary.seconds = time.monotonic() - started
    return summary


async def approval(
    client: AsyncClient,
    persona: Persona,
    prompts: Sequence[Prompt],
    version: str,
    samples: int,
    *,
    concurrency: int = 4,
    seed: int = 0,
    max_tokens: int = 48,
    temperature: float = 0.7,
) -> Approval:
    """The persona's true approval of `version`: of `samples` replies, in turn to the prompts. No vote is sent,
    and nothing is recorded: what is held out stays so.

    Compare two versions on the same prompts with `Approval.minus`. Raises PlauditError (NotFound if the version is not
    loaded at the server), or CommandError if the persona is faulty.
    """
    scores: dict[str, list[float]] = {}
    too_long: set[str] = set()
    simulation = Simulation(samples, seed=seed, max_tokens=max_tokens, temperature=temperature, policy_version=version)
    users = _Users(client, persona, simulation, Patience(Summary()))
    work = zip(range(samples), itertools.cycle(prompts), strict=False)

    async def sample() -> None:
        for index, prompt in work:
            reply = await users.chat(index, prompt, user="", unrecorded=True)
            if reply is None:
                too_long.add(prompt.key)
            else:
                scores.setdefault(prompt.key, []).append(users.judge(prompt, reply))

    await _together(sample, concurrency)
    return Approval.of(version, scores, len(too_long))


class _Users:
    """The persona, in as many bodies as there are user ids."""

    def __init__(self, client: AsyncClient, persona: Persona, simulation: Simulation, patience: Patience) -> None:
        self._client = client
        self._persona = persona
        self._simulation = simulation
        self._patience = patience

    async def converse(self, index: int, prompt: Prompt) -> Vote | None:
        """Ask, judge, vote; None if the prompt is too long for the server."""
        dice = _dice(self._simulation.seed, index, "vote")
        user = f"sim-{self._persona.name}-{dice.randrange(self._simulation.users)}"
        reply = await self.chat(index, prompt, user, unrecorded=False)
        if reply is None:
            return None
        liked = self.judge(prompt, reply)
        up = self._persona.thumb(liked, dice, self._simulation.noise)
        await self._patience.call(reply.thumbs_up if up else reply.thumbs_down)
        finished = reply.finish_reason == FinishReason.STOP
        return Vote(index, reply.policy_version, user, prompt.text, reply.text, finished, liked, up, reply.response_id)

    async def chat(self, index: int, prompt: Prompt, user: str, *, unrecorded: bool) -> Reply | None:
        """The whole reply; None if the prompt is too long for the server."""
        simulation = self._simulation
        seed = _dice(simulation.seed, index, "sampling").getrandbits(32)

        async def ask() -> Reply:
            reply = self._client.chat(
                prompt.messages,
                temperature=simulation.temperature,
                max_tokens=simulation.max_tokens,
                seed=seed,
                user_id=user,
                conversation_id=f"sim-{simulation.seed}-{index}",
                policy_version=simulation.policy_version,
                unrecorded=unrecorded,
            )
            await reply.read()
            return reply

        try:
            return await self._patience.call(ask)
        except InvalidRequest as error:
            # Only the prompt's length depends on the server; everything else that is wrong is wrong with all of them.
            if error.field == "messages" or error.field.endswith(".content"):
                return None
            raise

    def judge(self, prompt: Prompt, reply: Reply) -> float:
        """The persona's true approval. Raises CommandError if it is none."""
        liked = self._persona.approval(prompt.text, reply.text, reply.finish_reason == FinishReason.STOP)
        if not 0 <= liked <= 1:
            raise CommandError(f"persona {self._persona.name}: its approval of a reply is {liked}, not 0 to 1")
        return liked


async def _together(worker: Callable[[], Coroutine[None, None, None]], count: int) -> None:
    """`count` workers at once; the first that fails ends them all, and its exception is raised."""

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(worker())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _endlessly(prompts: Sequence[Prompt], seed: int) -> Iterator[Prompt]:
    for lap in itertools.count():
        order = list(prompts)
        _dice(seed, lap, "order").shuffle(order)
        yield from order


def _dice(seed: int, number: int, purpose: str) -> random.Random:
    """A generator of its own for each purpose: what one of them draws does not shift the others."""
    return random.Random(f"{seed}/{number}/{purpose}")  # noqa: S311
