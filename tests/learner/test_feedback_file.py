"""Files of judgements: what is right is read, and what is wrong is named with its line and field."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit_learner.experience.feedback_file import FeedbackFileError, read, standing

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
GOOD: dict[str, Any] = {"messages": QUESTION, "reply": "It scatters.", "thumb": "up"}


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_reads_each_kind(tmp_path: Path) -> None:
    file = write(
        tmp_path / "feedback.jsonl",
        GOOD,
        "",
        {**GOOD, "thumb": None, "rating": 4, "aspect": "tone", "user": "ann", "time": "2026-01-02T03:04:05"},
        {
            "messages": [{"role": "system", "content": "Be brief.\u2028"}, *QUESTION],
            "reply": "a",
            "preferred_over": "b",
        },
        {**GOOD, "time": 1767323045},
    )
    (first, thumb), (third, rating), (_, pair), (_, stamped) = read(file)
    assert (first, third) == (1, 3)
    assert (thumb.thumb, thumb.aspect, thumb.user, thumb.time) == ("up", "quality", "", None)
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (rating.rating, rating.aspect, rating.user, rating.time) == (4, "tone", "ann", when)
    assert (pair.preferred_over, pair.messages[0].content) == ("b", "Be brief.\u2028")
    assert stamped.time == when


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role: Input should be 'system', 'user' or"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "x"}]}, "messages: Value error, the last message"),
        ({"reply": ""}, "reply: Value error, is empty; give what was said"),
        ({"reply": " \n"}, "reply: Value error, is empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content: Value error, is empty"),
        ({"thumb": None, "preferred_over": " "}, "preferred_over: Value error, is empty"),
        ({"reply": None}, "reply: "),
        ({"thumb": "sideways"}, "thumb: Input should be 'up' or 'down'"),
        ({"rating": 3}, "exactly one of thumb, rating, preferred_over (given: thumb, rating)"),
        ({"thumb": None}, "exactly one of thumb, rating, preferred_over (given: none)"),
        ({"thumb": None, "rating": 6}, "rating: "),
        ({"thumb": None, "rating": 2.5}, "rating: "),
        ({"thumb": None, "rating": "5"}, "rating: "),
        ({"thumb": None, "preferred_over": "It scatters."}, "preferred_over is the reply itself"),
        ({"aspect": "a b"}, "aspect: "),
        ({"aspect": "tone=2"}, "aspect: "),
        ({"time": "yesterday"}, "time: "),
        ({"time": "1969-12-31T23:59:59Z"}, "time: Value error, give a time from 1970 to now"),
        ({"time": -1}, "time: Value error, give a time from 1970 to now"),
        ({"time": "9998-12-31T23:00:00Z"}, "time: Value error, give a time from 1970 to now"),
        ({"time": "9999-12-31T23:00:00-05:00"}, "time: Value error, give a time from 1970 to now"),
        ({"thumbs": "up"}, "thumbs: Extra inputs are not permitted"),
        ({"user": "u" * 257}, "user: "),
    ],
)
def test_says_what_is_wrong(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    file = write(tmp_path / "feedback.jsonl", GOOD, {**GOOD, **change})
    with pytest.raises(FeedbackFileError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert says in str(caught.value)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    file.write_text("\ufeff" + json.dumps(GOOD), encoding="utf-8")
    assert [(number, line.reply) for number, line in read(file)] == [(1, GOOD["reply"])]


def test_a_later_statement_of_one_person_replaces_an_earlier_one(tmp_path: Path) -> None:
    """Thumbs and ratings share a place; another user, aspect, reply, or nobody named, is another one."""
    rated = {**GOOD, "thumb": None, "rating": 2, "user": "ann"}
    pair = {**GOOD, "thumb": None, "preferred_over": "No.", "user": "ann"}
    file = write(
        tmp_path / "feedback.jsonl",
        {**GOOD, "user": "ann"},
        {**GOOD, "user": "bob", "time": "2026-01-02"},
        {**GOOD, "user": "bob", "time": "2026-01-01", "thumb": "down"},
        GOOD,
        {**GOOD, "thumb": "down"},
        {**GOOD, "user": "ann", "aspect": "tone"},
        pair,
        pair,
        {**pair, "preferred_over": "Yes."},
        rated,
    )
    recent = 1_790_000_000_000_000  # in 2026, after the times above
    assert [number for number, _ in standing(read(file), recent)] == [2, 4, 5, 6, 8, 9, 10]


def test_says_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(FeedbackFileError, match="No such file"):
        read(tmp_path / "nowhere.jsonl")
    with pytest.raises(FeedbackFileError, match="holds no judgements"):
        read(write(tmp_path / "empty.jsonl", "", ""))
    with pytest.raises(FeedbackFileError, match=":1: Invalid JSON"):
        read(write(tmp_path / "text.jsonl", "up"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(FeedbackFileError, match="is not UTF-8"):
        read(tmp_path / "binary.jsonl")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.text(max_size=40)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["messages", "reply", "thumb", "role", "content", "time"]), inner, max_size=4
            )
        ),
    ).map(json.dumps)
)
def test_anything_at_all_is_read_or_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "any.jsonl"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with suppress(FeedbackFileError):
        assert read(file)
