"""What simulated people say in `bench/votes.py`, and the oracle: what must stand when all of it was said."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["up", "down", "retraction"]

CHANGES, RETRACTIONS, DUPLICATES = 0.05, 0.02, 0.10  # of all that is sent


@dataclass(frozen=True, slots=True)
class Said:
    """One request. Duplicates have the key of what they repeat."""

    reply: str
    verdict: Verdict
    key: str


def history(name: str, size: int, clients: int, seed: int) -> list[list[Said]]:
    """What each client sends, one after the other: `size` requests in all; `name` tells the replies of two histories.

    A change or retraction comes after the vote that it is about, a duplicate anywhere after its original: also after
    the change, as a retry that was held up on its way.
    """
    chance = random.Random(seed)
    sent: list[list[Said]] = []
    for client in range(clients):
        count = size // clients + (client < size % clients)
        follow_ups = [round(share * count) for share in (CHANGES, RETRACTIONS, DUPLICATES)]
        changes, retractions, duplicates = follow_ups
        line = [
            Said(f"{name}-{client}-{number}", chance.choice(("up", "down")), f"{name}-{client}-{number}-first")
            for number in range(count - sum(follow_ups))
        ]
        for said in chance.sample(line, min(len(line), changes + retractions)):
            verdict: Verdict = "retraction"
            if changes:
                changes -= 1
                verdict = "down" if said.verdict == "up" else "up"
            later = Said(said.reply, verdict, f"{said.reply}-then")
            line.insert(chance.randint(line.index(said) + 1, len(line)), later)
        for said in chance.sample(line, min(len(line), duplicates)):
            line.insert(chance.randint(line.index(said) + 1, len(line)), said)
        sent.append(line)
    return sent


def oracle(lines: Sequence[Sequence[Said]]) -> dict[str, Verdict]:
    """reply → thumb that stands: of each line in its order, each key once, the last word on each reply."""
    stands: dict[str, Verdict] = {}
    for line in lines:
        for said in dict.fromkeys(line):
            stands[said.reply] = said.verdict
    return {reply: verdict for reply, verdict in stands.items() if verdict != "retraction"}
