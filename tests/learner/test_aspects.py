"""The declared combination: what is meant is read, what is wrong is named."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.settings import parse as read_settings
from plaudit_learner.config import LearnerSettings
from plaudit_learner.reward.aspects import DEFAULT, Term, parse

NUMBERS = st.floats(1e-300, 1e300)


def test_reads_weights_and_caps() -> None:
    assert parse("quality=1.0, tone=0.5<=1.0,length=-2,short") == (
        Term("quality"),
        Term("tone", 0.5, 1.0),
        Term("length", -2.0),
        Term("short"),
    )
    assert parse("quality") == DEFAULT
    assert parse("quality<=2") == (Term("quality", 1.0, 2.0),)
    assert math.isinf(DEFAULT[0].cap)


@given(
    st.lists(
        st.builds(Term, st.from_regex(r"[a-zé_.\-]+", fullmatch=True), NUMBERS, NUMBERS | st.just(math.inf)),
        min_size=1,
        unique_by=lambda term: term.aspect,
    )
)
def test_what_is_written_is_read_again(terms: list[Term]) -> None:
    assert parse(",".join(map(str, terms))) == tuple(terms)


@given(st.text("ab=<.,-1 ", max_size=20))
def test_anything_else_is_a_value_error(text: str) -> None:
    with suppress(ValueError):
        terms = parse(text)
        assert all(term.aspect and math.isfinite(term.weight) and term.cap > 0 for term in terms)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "NAME=WEIGHT<=CAP"),
        ("quality,,tone", "'' is not NAME"),
        ("quality=heavy", "quality: the weight 'heavy' is not a number"),
        ("quality=nan", "quality: the weight 'nan' is not a number"),
        ("quality=0", "leave the aspect out"),
        ("quality=1<=0", "quality: the cap is the most"),
        ("quality=1<=much", "quality: the cap 'much' is not a number"),
        ("quality,quality=2", "named twice"),
        ("flattery=-1", "at least one weight"),
        ("quality>=1", "is not NAME"),
    ],
)
def test_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_the_setting_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    needed = ["--event-log=sqlite:e", "--policy-store=p", "--state-dir=s"]
    right = read_settings(LearnerSettings, "plaudit-learner", [*needed, "--reward=tone=0.5<=1.0,quality"])
    assert (right.aspect, right.aspects, right.terms[0].cap) == ("tone", ("tone", "quality"), 1.0)
    with pytest.raises(SystemExit):
        read_settings(LearnerSettings, "plaudit-learner", [*needed, "--reward=quality=0"])
    assert "--reward: Value error, quality: a weight of 0 has no effect" in capsys.readouterr().err
