"""Asks back, and judges the second reply."""

from __future__ import annotations

import re

from plaudit_cli.personas.base import Persona, sigmoid, words

_EXAMPLE = re.compile(r"\b(?:example|instance|such as|e\.g\.|imagine|suppose)", re.IGNORECASE)


class Followup(Persona):
    """Says one of `followups` to a first reply, and likes a second one that does as it was told.

    approval = σ(3·example - 1.2) if an example was asked for, example being 1 if the reply gives one (it says "for
    example", "for instance", "such as", "imagine", …); σ((20 - words) / 5) if it was to be shorter; σ((4.4 - letters) /
    0.3) if it was to be simpler, letters being the mean of a word; 0.5 if none of these was asked. 0 without words.
    """

    name = "followup"
    description = "a second reply that is what was asked of the first: an example, shorter, or simpler"
    followups = ("Give me an example.", "Make it shorter, please.", "Say it in simpler words.")

    def approval(self, prompt: str, reply: str, finished: bool) -> float:
        """See the class; `prompt` is what was said last."""
        said, asked = words(reply), prompt.lower()
        if not said:
            return 0.0
        if "example" in asked:
            return sigmoid(3 * bool(_EXAMPLE.search(reply)) - 1.2)
        if "shorter" in asked:
            return sigmoid((20 - len(said)) / 5)
        if "simpler" in asked:
            return sigmoid((4.4 - sum(map(len, said)) / len(said)) / 0.3)
        return 0.5
