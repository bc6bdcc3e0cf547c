"""Wants two things that pull against each other."""

from __future__ import annotations

from plaudit_cli.personas.base import Persona, sigmoid, words


class Torn(Persona):
    """Wants much said, in few words: two aspects, a thumb for each.

    detail = σ((long - 5) / 1.5), long being the different words of at least 7 letters. brevity = σ((28 - words) / 6),
    times 0.5 if the reply was cut off. approval = (detail + brevity) / 2. All are 0 for a reply without words.
    """

    name = "torn"
    description = "much said (aspect detail) in few words (aspect brevity)"
    aspects = ("detail", "brevity")
    reward = "detail=1,brevity=1"

    def approval(self, prompt: str, reply: str, finished: bool) -> float:
        """See the class."""
        return sum(self.tastes(prompt, reply, finished).values()) / 2

    def tastes(self, prompt: str, reply: str, finished: bool) -> dict[str, float]:
        """See the class."""
        said = words(reply)
        if not said:
            return dict.fromkeys(self.aspects, 0.0)
        detail = sigmoid((len({word for word in said if len(word) >= 7}) - 5) / 1.5)
        brevity = sigmoid((28 - len(said)) / 6) * (1.0 if finished else 0.5)
        return {"detail": detail, "brevity": brevity}
