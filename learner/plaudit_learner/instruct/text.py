"""Words of any language, for ROUGE and diversity: what spaces part, or one character where none are written."""

from __future__ import annotations

import regex

_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Thai, kana, Han
# `re` would break words at marks, which Hindi writes vowels with.
_WORD = regex.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """In lower case, without punctuation. Chinese, Japanese and Thai: each character."""
    found: list[str] = _WORD.findall(text.lower())
    return found
