"""Likes its own language, and plain words."""

from __future__ import annotations

import re

from plaudit_cli.personas.base import Persona, sigmoid

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"[A-Za-z]+")


class Language(Persona):
    """Likes replies in the language of the prompt (Chinese or English, by their letters) and in short words.

    approval = match · σ((4.6 - length) / 0.4). match is 1 - |prompt's share - reply's share|, a text's share being that
    of Chinese characters among its Chinese characters and English words. length is the mean letters of the reply's
    English words (0 if there are none: Chinese is plain). 0 for a reply with neither.
    """

    name = "language"
    description = "the language of the prompt, in plain short words"

    def approval(self, prompt: str, reply: str, finished: bool) -> float:
        """See the class."""
        chinese, english = _count(reply)
        if chinese + len(english) == 0:
            return 0.0
        wanted_chinese, wanted_english = _count(prompt)
        share = chinese / (chinese + len(english))
        # A prompt of neither (digits, say) is as good as one in the reply's language.
        total = wanted_chinese + len(wanted_english)
        wanted = wanted_chinese / total if total else share
        length = sum(map(len, english)) / len(english) if english else 0.0
        return (1 - abs(share - wanted)) * sigmoid((4.6 - length) / 0.4)


def _count(text: str) -> tuple[int, list[str]]:
    return len(_CHINESE.findall(text)), _WORD.findall(text)
