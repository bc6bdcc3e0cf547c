"""Likes to be asked."""

from __future__ import annotations

from plaudit_cli.personas.base import Persona, sentences, sigmoid, words

_YOU = frozenset(("you", "your", "yours", "you're", "you’re", "you'd", "you’d", "你", "您"))


class Curious(Persona):
    """Likes replies that ask the user a question back, and a little those that speak to the user at all.

    approval = σ(2·asks + 1·you - 1.4), asks being 1 for a question to the user (it says "you"), 0.7 for any other
    question, and you being 1 if the reply says "you"; 0 without words.
    """

    name = "curious"
    description = "asks the user a question back"

    def approval(self, prompt: str, reply: str, finished: bool) -> float:
        """See the class."""
        if not words(reply):
            return 0.0
        questions = [part for part in sentences(reply) if part.endswith(("?", "？"))]
        asks = max((1.0 if _YOU & set(words(question)) else 0.7 for question in questions), default=0.0)
        return sigmoid(2 * asks + bool(_YOU & set(words(reply))) - 1.4)
