"""Votes over time: every one of them once, in spans that are as narrow as their number allows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.releases import IMPORTED
from plaudit.v1.feedback_pb2 import Thumb
from plaudit_learner.experience.store import Experience
from plaudit_learner.experience.timeline import Span, _width
from tests.learner.test_experience import DOWN, UP, feedback, interaction

HOUR = 3600
DAY = 24 * HOUR


def vote(
    store: Experience, at: int, *, version: str = "v0", thumb: Thumb.ValueType = UP, aspect: str = "quality"
) -> None:
    name = f"{version} {at} {aspect}"
    reply, said = interaction(name, time=at), feedback(name, key="k", time=at, thumb=thumb, aspect=aspect)
    reply.policy_version = version
    said.submitted_at.FromSeconds(at)
    store.add_interaction(reply)
    store.add_feedback(said)


@pytest.fixture
def store(tmp_path: Path) -> Experience:
    return Experience(tmp_path / "experience.sqlite")


def test_votes_are_told_by_minute_and_version(store: Experience) -> None:
    assert store.timeline("quality", 200) == (60, [])
    begins = 1_800_000_000  # a multiple of 60
    vote(store, begins + 5, version="v1", thumb=DOWN)
    vote(store, begins + 10)
    vote(store, begins + 59, thumb=DOWN)
    vote(store, begins + 120)
    vote(store, begins + 121, aspect="tone")
    vote(store, begins + 9999, version=IMPORTED)
    assert store.timeline("quality", 200) == (
        60,
        [Span(begins, "v0", 1, 1), Span(begins, "v1", 0, 1), Span(begins + 120, "v0", 1, 0)],
    )
    store.close()


def test_a_longer_time_is_told_by_wider_spans(store: Experience) -> None:
    begins = 1_800_000_000
    with store.transaction():
        for day in range(400):
            vote(store, begins + day * DAY, thumb=UP if day % 4 else DOWN)
    width, spans = store.timeline("quality", 200)
    assert width % DAY == 0
    assert len(spans) <= 200
    assert (sum(span.up for span in spans), sum(span.down for span in spans)) == (300, 100)
    assert Counter(span.start % width for span in spans) == {0: len(spans)}
    store.close()


@given(st.integers(0, 4_000_000_000), st.integers(0, 4_000_000_000), st.integers(2, 300))
def test_no_time_is_too_long(first: int, length: int, most: int) -> None:
    width = _width(first, first + length, most)
    assert (first + length) // width - first // width + 1 <= most
    assert width == 60 or length >= (most - 2) * 60, "no wider than needed"
