"""How aspects make up the reward: `quality=1.0,tone=0.5<=1.0`. Nothing heavy is imported here.

Each term is an aspect, its weight, and the most that it may contribute. A cap is a guard against one-sided rewards: a
reply that is nothing but charming earns its charm up to the cap, and no more.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

DEFAULT_ASPECT = "quality"
_TERM = re.compile(r"(?P<aspect>[^\s=<>,]+)\s*(=\s*(?P<weight>[^\s=<>,]+)\s*)?(<=\s*(?P<cap>[^\s=<>,]+))?")


@dataclass(frozen=True)
class Term:
    """One aspect's part in the reward: min(weight * score, cap), the score in deviations of the reference policy's."""

    aspect: str
    weight: float = 1.0
    cap: float = math.inf

    def __str__(self) -> str:
        return f"{self.aspect}={self.weight!r}" + (f"<={self.cap!r}" if math.isfinite(self.cap) else "")


DEFAULT = (Term(DEFAULT_ASPECT),)


def parse(text: str) -> tuple[Term, ...]:
    """The terms of `NAME[=WEIGHT][<=CAP],…`; a weight is 1 if it is left out, a cap has no default.

    Weights may be negative: what people give a thumb for in that aspect then counts against a reply. Raises ValueError
    that names the term and says what would be right.
    """
    terms: list[Term] = []
    for part in text.split(","):
        match = _TERM.fullmatch(part.strip())
        if not match:
            raise ValueError(f"{part.strip()!r} is not NAME, NAME=WEIGHT or NAME=WEIGHT<=CAP, e.g. tone=0.5<=1.0")
        aspect = match["aspect"]
        weight = _number(aspect, "weight", match["weight"] or "1")
        if weight == 0:
            raise ValueError(f"{aspect}: a weight of 0 has no effect; leave the aspect out")
        cap = _number(aspect, "cap", match["cap"]) if match["cap"] else math.inf
        if cap <= 0:
            raise ValueError(f"{aspect}: the cap is the most that it may add to the reward: give a number above 0")
        if any(term.aspect == aspect for term in terms):
            raise ValueError(f"{aspect} is named twice")
        terms.append(Term(aspect, weight, cap))
    if all(term.weight < 0 for term in terms):
        raise ValueError("at least one weight has to be above 0: there would be nothing to strive for")
    return tuple(terms)


def _number(aspect: str, what: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{aspect}: the {what} {text!r} is not a number")
    return number
