"""Votes by when they were made: how approval went over time, of the replies that the store still keeps."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from plaudit.releases import IMPORTED

_WIDTHS = (60, 300, 900, 3600, 3 * 3600, 12 * 3600, 86400)
"""Seconds that a span may have; beyond the last one, whole days."""
_THUMBS = (
    " FROM standing AS s JOIN interactions AS i USING (response_id)"
    " WHERE s.slot = 'vote' AND s.value IN (1, -1) AND s.aspect = :aspect AND i.policy_version != :foreign"
)


class Span(NamedTuple):
    """Thumbs that were made in one span of time on replies of one version."""

    start: int
    """Unix time in seconds; a multiple of the width."""
    policy_version: str
    up: int
    down: int


def timeline(db: sqlite3.Connection, aspect: str, most: int) -> tuple[int, list[Span]]:
    """(width in seconds, spans in which there are votes, oldest first): at most `most` of each version.

    Imported votes are left out, and those that stood on replies which have left the store.
    """
    asked = {"aspect": aspect, "foreign": IMPORTED}
    first, last = db.execute("SELECT min(s.at), max(s.at)" + _THUMBS, asked).fetchone()
    if first is None:
        return _WIDTHS[0], []
    width = _width(first // 10**6, last // 10**6, most)
    rows = db.execute(
        "SELECT s.at / :micros AS span, i.policy_version, sum(s.value = 1), sum(s.value = -1)"
        f"{_THUMBS} GROUP BY span, i.policy_version ORDER BY span, i.policy_version",
        asked | {"micros": width * 10**6},
    )
    return width, [Span(span * width, version, up, down) for span, version, up, down in rows]


def _width(first: int, last: int, most: int) -> int:
    """The least width at which the time from `first` to `last` is no more than `most` spans."""
    days = 1 + (last - first) // ((most - 1) * 86400)  # `most - 1` of them reach, wherever the first begins
    fitting = (width for width in _WIDTHS if last // width - first // width < most)
    return next(fitting, days * 86400)
