"""Likes it short."""

from __future__ import annotations

from plaudit_cli.personas.base import Persona, sigmoid, words


class Brief(Persona):
    """Likes complete replies of at most about 30 words.

    approval = σ((30 - words) / 6), times 0.3 if the reply was cut off; 0 for a reply without words.
    """

    name = "brief"
    description = "complete replies of at most about 30 words"

    def approval(self, prompt: str, reply: str, finished: bool) -> float:
        """See the class."""
        count = len(words(reply))
        if count == 0:
            return 0.0
        return sigmoid((30 - count) / 6) * (1.0 if finished else 0.3)
