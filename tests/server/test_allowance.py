"""Token buckets: never more than a minute's worth at once, and the time that they tell is the true one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_server.allowance import Allowance


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_refuses_until_the_time_it_tells() -> None:
    clock = Clock()
    allowance = Allowance(600, clock)
    assert allowance.take("ann", 500) == 0
    assert allowance.take("ann", 200) == pytest.approx(10.0)
    assert allowance.take("bob", 200) == 0, "each has a bucket of its own"
    clock.now += 9.99
    assert allowance.take("ann", 200) == pytest.approx(0.01)
    clock.now += 0.02
    assert allowance.take("ann", 200) == 0


def test_what_is_given_back_can_be_taken_again() -> None:
    allowance = Allowance(600, Clock())
    assert allowance.take("ann", 600) == 0
    assert allowance.take("ann", 1) > 0
    allowance.give_back("ann", 550)
    assert allowance.take("ann", 550) == 0
    assert allowance.take("ann", 1) > 0


def test_more_than_a_bucket_holds_needs_a_full_one_and_leaves_a_debt() -> None:
    clock = Clock()
    allowance = Allowance(600, clock)
    assert allowance.take("ann", 1200) == 0
    assert allowance.take("ann", 1200) == pytest.approx(120.0)
    clock.now += 120.1
    assert allowance.take("ann", 1) == 0
    assert allowance.take("ann", 1200) == pytest.approx(0.1)


def test_without_a_limit_nothing_is_counted() -> None:
    allowance = Allowance(0)
    assert allowance.take("ann", 10**9) == 0
    allowance.give_back("ann", 1)
    assert len(allowance) == 0


def test_any_number_of_spenders_takes_bounded_memory() -> None:
    clock = Clock()
    allowance = Allowance(6000, clock)
    for number in range(50_000):
        assert allowance.take(number, 100) == 0  # a second's worth each, a hundred of them a second
        clock.now += 0.01
    assert len(allowance) <= 2048


@given(st.lists(st.tuples(st.floats(0, 90), st.integers(1, 150), st.floats(0, 1)), max_size=60))
def test_never_more_than_the_rate_and_one_bucket(steps: list[tuple[float, int, float]]) -> None:
    """Whatever is asked for and given back, over any time t at most rate · t and one bucket are spent."""
    clock = Clock()
    allowance = Allowance(100, clock)
    spent: list[tuple[float, float]] = []
    for pause, units, part in steps:
        clock.now += pause
        wait = allowance.take("ann", units)
        if wait:
            clock.now += wait + 1e-6
            assert allowance.take("ann", units) == 0, "it told the true time"
        unused = int(units * (1 - part))
        allowance.give_back("ann", unused)
        spent.append((clock.now, units - unused))
    for first in range(len(spent)):
        total = 0.0
        for at, used in spent[first:]:
            total += used
            # One that is larger than the bucket may begin when the bucket is full.
            assert total <= 100 * (at - spent[first][0]) / 60 + 100 + max(0, used - 100) + 1e-3
