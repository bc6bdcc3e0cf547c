"""Likes a kind tone."""

from __future__ import annotations

from plaudit_cli.personas.base import Persona, sigmoid, words

_KIND = frozenset(
    (
        *("please", "thank", "thanks", "glad", "happy", "welcome", "sure", "certainly", "absolutely", "wonderful"),
        *("lovely", "great", "hope", "enjoy", "sorry", "love", "delighted", "pleasure", "friend", "kind", "kindly"),
        *("luck", "hello"),
    )
)
_YOU = frozenset(("you", "your", "yours", "you're", "you’re", "you'll", "you’ll", "you've", "you’ve"))


class Warm(Persona):
    """Likes polite and friendly words, being spoken to, and an exclamation mark.

    approval = σ(1.3·kind + 0.8·you + 0.8·excited - 1.4), kind being friendly words (please, thank, glad, hope, …), at
    most 2, you being words of address (you, your, …), at most 2, and excited being 1 if there is a "!"; 0 without
    words.
    """

    name = "warm"
    description = "polite and friendly words, “you”, an exclamation mark"

    def approval(self, prompt: str, reply: str, finished: bool) -> float:
        """See the class."""
        said = words(reply)
        if not said:
            return 0.0
        kind = min(sum(word in _KIND for word in said), 2)
        you = min(sum(word in _YOU for word in said), 2)
        return sigmoid(1.3 * kind + 0.8 * you + 0.8 * ("!" in reply or "！" in reply) - 1.4)
