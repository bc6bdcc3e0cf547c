"""Counting approval."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.wilson import wilson
from plaudit_cli.tally import Approval, Summary, Tally


def test_wilson_agrees_with_the_literature() -> None:
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for up, votes, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(up, votes) == pytest.approx((low, high), abs=1e-4)
    assert wilson(0, 0) == (0, 1)


@given(st.integers(1, 10_000).flatmap(lambda votes: st.tuples(st.integers(0, votes), st.just(votes))))
def test_wilson_holds_the_share(counts: tuple[int, int]) -> None:
    low, high = wilson(*counts)
    assert 0 <= low <= counts[0] / counts[1] + 1e-12
    assert counts[0] / counts[1] - 1e-12 <= high <= 1


def test_a_tally() -> None:
    tally = Tally()
    assert (tally.rate, tally.true_rate, tally.interval) == (0, 0, (0, 1))
    for up, liked in [(True, 0.75), (True, 0.5), (False, 0.25), (False, 0.5)]:
        tally.add(up, liked)
    assert (tally.up, tally.down, tally.votes, tally.rate, tally.true_rate) == (2, 2, 4, 0.5, 0.5)
    summary = Summary(versions={"v0": tally, "v1": Tally(1, 0, 1.0)}, skipped=2)
    assert (summary.votes, summary.conversations) == (5, 7)


def test_approval_counts_prompts_not_replies() -> None:
    scores = {"a": [0.0, 0.2], "b": [0.4, 0.6]}
    approval = Approval.of("v1", scores, skipped=1)
    assert (approval.version, approval.samples, approval.skipped) == ("v1", 4, 1)
    assert approval.mean == pytest.approx(0.3)
    assert approval.standard_error == pytest.approx(0.2)  # of two prompts, at 0.1 and 0.5
    better = Approval.of("v2", {"a": [0.3], "b": [0.7], "c": [0.0]}, skipped=0)
    difference, error = better.minus(approval)
    assert difference == pytest.approx(0.2)
    assert error == pytest.approx(0, abs=1e-12)  # both prompts rose alike; c is not shared


def test_too_little_is_not_a_number() -> None:
    nothing = Approval.of("v1", {}, skipped=3)
    assert math.isnan(nothing.mean)
    assert math.isnan(Approval.of("v1", {"a": [0.5]}, skipped=0).standard_error)
