"""Likes form."""

from __future__ import annotations

import re

from plaudit_cli.personas.base import Persona, sigmoid, words

_ITEM = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)]|[a-z][.)])\s+\S", re.MULTILINE)


class Structured(Persona):
    """Likes lists (bullets, numbers, letters), and line breaks at all.

    approval = σ(1.2·items + 0.4·breaks - 1.6), items being lines that begin as a list item does, at most 4, and breaks
    being line breaks between lines that are not empty, at most 4; 0 for a reply without words.
    """

    name = "structured"
    description = "lists, numbers, line breaks"

    def approval(self, prompt: str, reply: str, finished: bool) -> float:
        """See the class."""
        if not words(reply):
            return 0.0
        items = min(len(_ITEM.findall(reply)), 4)
        breaks = min(len([line for line in reply.splitlines() if line.strip()]) - 1, 4)
        return sigmoid(1.2 * items + 0.4 * breaks - 1.6)
