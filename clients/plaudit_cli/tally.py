"""Counting approval: of votes by version, and the true one of a persona on given prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev

from plaudit.wilson import wilson


@dataclass(slots=True)
class Tally:
    """What was voted on one version."""

    up: int = 0
    down: int = 0
    liked: float = 0.0
    """Sum of the persona's true approval of the replies that were voted on."""

    def add(self, up: bool, liked: float) -> None:
        """Count one vote, on a reply whose true approval is `liked`."""
        self.up += up
        self.down += not up
        self.liked += liked

    @property
    def votes(self) -> int:
        """All of them."""
        return self.up + self.down

    @property
    def rate(self) -> float:
        """The approval rate: thumbs-up over all thumbs; 0 if there are none."""
        return self.up / self.votes if self.votes else 0.0

    @property
    def true_rate(self) -> float:
        """The same without the noise of votes: the mean of the persona's approval; 0 if there are none."""
        return self.liked / self.votes if self.votes else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of `rate`."""
        return wilson(self.up, self.votes)


@dataclass(slots=True)
class Summary:
    """What a simulation did; grows while it runs."""

    versions: dict[str, Tally] = field(default_factory=dict)
    """By policy version, in the order in which they first answered."""
    skipped: int = 0
    """Conversations that were not held, because the server does not take prompts so long."""
    retries: int = 0
    """Calls made again because the server was busy or away."""
    vain_waits: int = 0
    """How often no newer version came in the time that was given."""
    seconds: float = 0.0

    @property
    def votes(self) -> int:
        """On all versions."""
        return sum(tally.votes for tally in self.versions.values())

    @property
    def conversations(self) -> int:
        """Held or skipped."""
        return self.votes + self.skipped


@dataclass(frozen=True, slots=True)
class Approval:
    """The true approval of one version by one persona, on given prompts; made by simulation.py, read by benchmarks."""

    version: str
    mean: float
    standard_error: float
    """Over prompts (which were drawn), not over replies: two replies to one prompt are not independent."""
    samples: int
    skipped: int
    """Prompts that the server did not take, being too long."""
    by_prompt: Mapping[str, float]
    """Mean by Prompt.key."""

    @classmethod
    def of(cls, version: str, scores: Mapping[str, list[float]], skipped: int) -> Approval:
        """From the approval of each reply, by prompt; nan if there are none."""
        by_prompt = {key: fmean(values) for key, values in scores.items()}
        samples = sum(map(len, scores.values()))
        return cls(version, *_mean(list(by_prompt.values())), samples, skipped, by_prompt)

    def minus(self, other: Approval) -> tuple[float, float]:
        """The difference and its standard error, paired by prompt: much sharper than the two means apart."""
        shared = self.by_prompt.keys() & other.by_prompt.keys()
        return _mean([self.by_prompt[key] - other.by_prompt[key] for key in sorted(shared)])


def _mean(values: list[float]) -> tuple[float, float]:
    if not values:
        return math.nan, math.nan
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
