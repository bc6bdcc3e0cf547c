"""What every simulated user is."""

from __future__ import annotations

import math
import random
import re
from abc import ABC, abstractmethod
from typing import ClassVar


class Persona(ABC):
    """A simulated user: a taste, and a vote that follows it as a coin follows its bias."""

    name: ClassVar[str]
    """Short; part of the user ids under which it votes."""
    description: ClassVar[str]
    """Its taste in one line, for people."""

    aspects: ClassVar[tuple[str, ...]] = ("quality",)
    """What it can be asked about, one thumb for each."""
    reward: ClassVar[str] = "quality"
    """How the aspects make up what it wants, as `--reward` takes it."""
    followups: ClassVar[tuple[str, ...]] = ()
    """What it says to a first reply, if it judges the second one; none: it judges the first."""

    @abstractmethod
    def approval(self, prompt: str, reply: str, finished: bool) -> float:
        """The probability, 0 to 1, that this user likes `reply`; `finished` is False if the reply was cut off.

        Smooth, so that every small step in the right direction is liked a little more often.
        """

    def tastes(self, prompt: str, reply: str, finished: bool) -> dict[str, float]:
        """The probability of a thumb up, for each of `aspects`."""
        return {"quality": self.approval(prompt, reply, finished)}

    def thumb(self, approval: float, rng: random.Random, noise: float) -> bool:
        """The vote, True for up, on a reply liked with probability `approval`; flipped with probability `noise`."""
        liked = rng.random() < approval
        return liked != (rng.random() < noise)


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), for any x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def words(text: str) -> list[str]:
    """Words of letters, digits and apostrophes, in lower case; each Chinese character is one."""
    return re.findall(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+(?:['’][^\W_\u4e00-\u9fff]+)*", text.lower())


def sentences(text: str) -> list[str]:
    """Sentences with their end marks; what follows the last end mark is one too."""
    return [part.strip() for part in re.findall(r"[^.!?。！？\n]+[.!?。！？]*", text) if part.strip()]
