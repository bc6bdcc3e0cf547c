"""Two versions, the same prompts, the same sampling: what each of them says, and figures of it.

    prompt i, sample k ──▶ seed(i, k) ──┬─▶ version   ──▶ reply
                                        └─▶ against   ──▶ reply      a pair

The seed is the same on both sides, so a version compared with itself says the same; nothing is recorded.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from plaudit_cli.common import CommandError
from plaudit_cli.pace import Patience
from plaudit_cli.personas import Persona
from plaudit_cli.prompts import Prompt
from plaudit_cli.tally import Approval, Summary
from plaudit_client import AsyncClient, FinishReason, InvalidRequest, NotFound

OPENING = 4
"""Words of a reply that are its opening; of writing without spaces, each character counts as one."""
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Thai, kana, Han
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are sampled, on both sides."""

    samples: int = 1
    """Of each prompt."""
    max_tokens: int = 48
    temperature: float = 0.7
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """One reply."""

    text: str
    tokens: int
    finished: bool
    """Whether it ends by itself; if not, it was cut off at the longest length."""
    approval: float | None
    """The persona's true approval, 0 to 1; None if no persona was given."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two replies to one prompt, at one seed."""

    prompt: Prompt
    ours: Said
    theirs: Said


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both sides."""

    name: str
    ours: float
    theirs: float
    error: float | None = None
    """Standard error of the difference, paired by prompt; None where there is none."""


@dataclass(frozen=True)
class Comparison:
    """Made by `compare`; read by the table and the report."""

    version: str
    against: str
    pairs: list[Pair]
    """In the order of the prompts."""
    skipped: int
    """Prompts that the server did not take, being too long."""

    @property
    def identical(self) -> float:
        """The share of pairs whose replies are the same, to the letter."""
        return fmean(pair.ours.text == pair.theirs.text for pair in self.pairs)

    @property
    def rows(self) -> list[Row]:
        """The figures, in the order in which they are shown."""
        ours, theirs = [pair.ours for pair in self.pairs], [pair.theirs for pair in self.pairs]
        rows = [
            self._paired("length, tokens", lambda said: said.tokens),
            self._paired("cut off, share", lambda said: not said.finished),
            Row("distinct openings, share", _openings(ours), _openings(theirs)),
        ]
        if ours[0].approval is not None:
            rows.append(self._paired("true approval", lambda said: said.approval or 0.0))
        return rows

    def _paired(self, name: str, figure: Callable[[Said], float]) -> Row:
        ours = self._by_prompt(self.version, [pair.ours for pair in self.pairs], figure)
        theirs = self._by_prompt(self.against, [pair.theirs for pair in self.pairs], figure)
        return Row(name, ours.mean, theirs.mean, ours.minus(theirs)[1])

    def _by_prompt(self, version: str, side: Sequence[Said], figure: Callable[[Said], float]) -> Approval:
        values: dict[str, list[float]] = {}
        for pair, said in zip(self.pairs, side, strict=True):
            values.setdefault(pair.prompt.key, []).append(float(figure(said)))
        return Approval.of(version, values, skipped=0)


async def compare(
    client: AsyncClient,
    prompts: Sequence[Prompt],
    version: str,
    against: str,
    sampling: Sampling,
    *,
    persona: Persona | None = None,
    concurrency: int = 4,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Ask both versions; `watch` is told how many pairs are done, of how many. Prompts that come twice are asked
    once.

    Raises CommandError if a version is not loaded at the server, if the persona is faulty, or if the server took none
    of the prompts, and PlauditError.
    """
    patience = Patience(Summary())
    prompts = list({prompt.key: prompt for prompt in prompts}.values())
    found: dict[tuple[int, int], Pair] = {}
    skipped: set[int] = set()
    work = iter([(index, sample) for index in range(len(prompts)) for sample in range(sampling.samples)])

    async def say(index: int, sample: int, asked: str) -> Said:
        prompt = prompts[index]
        seed = random.Random(f"{sampling.seed}/{index}/{sample}").getrandbits(32)  # noqa: S311

        async def ask() -> Said:
            reply = client.chat(
                prompt.messages,
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                seed=seed,
                policy_version=asked,
                unrecorded=True,
            )
            await reply.read()
            finished = reply.finish_reason == FinishReason.STOP
            liked = None if persona is None else _approval(persona, prompt.text, reply.text, finished)
            return Said(reply.text, reply.usage.completion_tokens if reply.usage else 0, finished, liked)

        try:
            return await patience.call(ask)
        except NotFound as error:
            raise CommandError(
                f"{error.message}; a server answers with v0, the stable version and the one before it: "
                "`plaudit policies promote` brings another one in"
            ) from None

    async def converse() -> None:
        for index, sample in work:  # shared by all workers: each takes the next
            try:
                pair = Pair(prompts[index], await say(index, sample, version), await say(index, sample, against))
            except InvalidRequest as error:
                if not (error.field == "messages" or error.field.endswith(".content")):
                    raise
                skipped.add(index)
            else:
                found[index, sample] = pair
            watch(len(found) + len(skipped) * sampling.samples, len(prompts) * sampling.samples)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(converse())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    if not found:
        raise CommandError(f"the server took none of the {len(prompts)} prompts: they are too long for it")
    return Comparison(version, against, [found[place] for place in sorted(found)], len(skipped))


def _approval(persona: Persona, prompt: str, reply: str, finished: bool) -> float:
    liked = persona.approval(prompt, reply, finished)
    if not 0 <= liked <= 1:
        raise CommandError(f"persona {persona.name}: its approval of a reply is {liked}, not 0 to 1")
    return liked


def _openings(replies: Sequence[Said]) -> float:
    return len({tuple(_WORD.findall(said.text)[:OPENING]) for said in replies}) / len(replies)
