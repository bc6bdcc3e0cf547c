"""Prompts for the small sizes: pairs of words, for a model that knows none."""

from __future__ import annotations

from itertools import product

from plaudit_cli.prompts import Prompt, user

_WORDS = ["alpha", "beta", "gamma", "delta", "river", "stone", "cloud", "tree", "bird", "fish", "moon", "star", "wind"]


def pairs(words: int = len(_WORDS)) -> list[Prompt]:
    """Every two of the first so many words, the alphabetically earlier one first."""
    return [user(f"{a} {b}") for a, b in product(_WORDS[:words], repeat=2) if a < b]
