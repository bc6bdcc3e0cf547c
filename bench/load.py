"""What bench-stream asks of each of its sides, and the clock on what they answer.

Two kinds of load: so many callers, each of which asks again as soon as it was answered, and a trace's requests at the
trace's times. Prompts are words drawn at random, so that none is in a prefix cache; the same seed asks the same.
"""

from __future__ import annotations

import asyncio
import csv
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

TRACE = Path(__file__).parents[2] / "shared" / "data" / "azure-llm-trace" / "AzureLLMInferenceTrace_conv.csv"
SHORTER, EVERY, FASTER = 8, 8, 4
"""The trace was taken from models a hundred times as large: an eighth of its lengths, every eighth of its requests,
four times as fast. That is 2.8 requests a second, which keep this model busy without piling up."""
_MOST_CONTEXT = 1024  # tokens of a prompt; one request in a thousand asks for more
_WORDS = "water stone light river house green paper music window garden summer winter letter number market doctor"


@dataclass(frozen=True)
class Request:
    """One reply that is asked for."""

    prompt: str
    max_tokens: int
    """Exactly so many are sampled: nothing ends a reply early."""
    at: float = 0.0
    """Seconds after the load begins; of a steady load, as soon as a caller is free."""


@dataclass(frozen=True)
class Load:
    """What is asked, in its order."""

    callers: int | None
    """How many ask at once; None: each at its time."""
    requests: Sequence[Request]


def steady(callers: int, seed: int, replies: int, tokens: tuple[int, int]) -> Load:
    """Short questions; replies of a length drawn from `tokens`."""
    draw = random.Random(seed)
    return Load(callers, [Request(_prompt(draw, 12), draw.randint(*tokens)) for _ in range(replies)])


def replay(file: Path, seed: int, requests: int) -> Load:
    """The trace's first requests, at its times and of its lengths, scaled as above. Each seed begins further on."""
    draw = random.Random(seed)
    with file.open() as lines:
        rows = list(csv.DictReader(lines))[::EVERY][seed * requests : (seed + 1) * requests]
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]  # it has tenths of microseconds
    return Load(
        None,
        [
            Request(
                _prompt(draw, min(int(row["ContextTokens"]) // SHORTER, _MOST_CONTEXT)),
                max(1, int(row["GeneratedTokens"]) // SHORTER),
                (at - times[0]).total_seconds() / FASTER,
            )
            for row, at in zip(rows, times, strict=True)
        ],
    )


def _prompt(draw: random.Random, words: int) -> str:
    """About as many tokens as words."""
    return " ".join(draw.choices(_WORDS.split(), k=max(1, words)))


@dataclass
class Heard:
    """One reply, as its caller heard it."""

    asked: float
    arrivals: list[float] = field(default_factory=list)
    """When each piece of text came."""
    tokens: int = 0


Ask = Callable[[Request], Awaitable[Heard]]


async def drive(load: Load, ask: Ask) -> list[Heard]:
    """All of a load; raises what `ask` raises."""
    if load.callers is None:
        began = time.perf_counter()

        async def at_its_time(request: Request) -> Heard:
            await asyncio.sleep(request.at - (time.perf_counter() - began))
            return await ask(request)

        return list(await asyncio.gather(*map(at_its_time, load.requests)))
    waiting = iter(load.requests)

    async def caller() -> list[Heard]:
        return [await ask(request) for request in waiting]

    callers = await asyncio.gather(*(caller() for _ in range(load.callers)))
    return [heard for one in callers for heard in one]


def figures(heard: Sequence[Heard], cpu_seconds: float) -> dict[str, float]:
    """What a row says of one side; cpu_seconds: of the process in front of the engine, over the load."""
    tokens = sum(one.tokens for one in heard)
    first = sorted(one.arrivals[0] - one.asked for one in heard)
    gaps = sorted(b - a for one in heard for a, b in zip(one.arrivals, one.arrivals[1:], strict=False))
    seconds = max(one.arrivals[-1] for one in heard) - min(one.asked for one in heard)
    return {
        "tokens/s": round(tokens / seconds, 2),
        "first token p50, ms": round(1000 * statistics.median(first), 1),
        "first token p99, ms": round(1000 * _percentile(first, 0.99), 1),
        "between p50, ms": round(1000 * statistics.median(gaps), 2),
        "between p99, ms": round(1000 * _percentile(gaps, 0.99), 2),
        "CPU s/1,000 tokens": round(1000 * cpu_seconds / tokens, 4),
        "pieces": len(first) + len(gaps),
        "tokens": tokens,
    }


def _percentile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
