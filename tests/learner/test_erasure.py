"""Erased means gone, and staying gone, in whatever order the records come (invariant 10)."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.v1.events_pb2 import Erasure, Feedback, Interaction
from plaudit_learner.experience.store import Experience
from tests.learner.test_experience import DOWN, UP, at, feedback, interaction

Any3: TypeAlias = Interaction | Feedback | Erasure


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Experience]:
    store = Experience(tmp_path / "experience.sqlite", keep=100)
    yield store
    store.close()


def reply(response_id: str, user: str, time: int) -> Interaction:
    record = interaction(response_id, time=time)
    record.user = user
    return record


def erasure(user: str, time: int) -> Erasure:
    return Erasure(schema_version=1, user=user, time=at(time), actor="operator")


def take(store: Experience, *records: Any3) -> None:
    with store.transaction():
        for record in records:
            store.add(record)
        store.retain()


def kept(path: Path) -> tuple[list[object], list[object]]:
    """Everything about replies and statements that is in the file."""
    with sqlite3.connect(path) as db:
        replies = db.execute("SELECT * FROM interactions ORDER BY 1").fetchall()
        statements = db.execute("SELECT * FROM statements ORDER BY 1, 2, 3, 4").fetchall()
    db.close()
    return replies, statements


REPLIES = {"r0": ("ann", 1), "r1": ("ann", 4), "r2": ("bob", 2), "r3": ("", 3)}
VERDICTS: list[dict[str, object]] = [
    {"thumb": UP},
    {"thumb": DOWN},
    {"rating": 4},
    {"comment": "hm"},
    {"retraction": True},
    {"preferred_over": "r0"},
    {"preferred_over": "r2"},
]


@st.composite
def histories(draw: st.DrawFn) -> list[Any3]:
    """Replies to two people and to nobody, statements with retries at other times, erasures in between."""
    records: list[Any3] = [reply(name, *REPLIES[name]) for name in draw(st.sets(st.sampled_from(list(REPLIES))))]
    for key in range(draw(st.integers(0, 10))):
        response_id, user = draw(st.sampled_from(list(REPLIES))), draw(st.sampled_from(["ann", "bob", ""]))
        verdict = draw(st.sampled_from(VERDICTS))
        times = draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))
        records += [
            feedback(response_id, key=f"k{key}", time=time, user=user, **verdict)  # type: ignore[arg-type]
            for time in times
        ]
    erased = draw(st.lists(st.tuples(st.sampled_from(["ann", "bob"]), st.integers(0, 7)), max_size=3))
    records += [erasure(user, time) for user, time in erased]
    return records


def oracle(records: list[Any3]) -> tuple[set[str], set[str]]:
    """(replies, statements) that are to be there, by id and by key; nothing of it is shared with the store."""
    until: dict[str, int] = {}
    for record in records:
        if isinstance(record, Erasure):
            until[record.user] = max(until.get(record.user, -1), record.time.ToMicroseconds())
    replies = [record for record in records if isinstance(record, Interaction)]
    gone = {r.response_id for r in replies if r.started_at.ToMicroseconds() <= until.get(r.user, -1)}
    first: dict[str, Feedback] = {}
    for record in records:
        if isinstance(record, Feedback):
            before = first.setdefault(record.feedback_id, record)
            if record.submitted_at.ToMicroseconds() < before.submitted_at.ToMicroseconds():
                first[record.feedback_id] = record
    statements = {
        key
        for key, said in first.items()
        if said.submitted_at.ToMicroseconds() > until.get(said.user, -1)
        and said.response_id not in gone
        and said.preferred_over not in gone
    }
    return {r.response_id for r in replies} - gone, statements


@settings(max_examples=40)
@given(records=histories(), seed=st.integers(0, 1000))
def test_what_is_kept_is_a_function_of_the_set_of_records(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any3], seed: int
) -> None:
    shuffle = random.Random(seed)
    ends = []
    for _ in range(2):
        path = tmp_path_factory.mktemp("erasure") / "experience.sqlite"
        store = Experience(path, keep=100)
        store._db.execute("PRAGMA synchronous = OFF")  # power does not fail here
        try:
            take(store, *shuffle.sample(records, len(records)), *shuffle.sample(records, len(records) // 2))
        finally:
            store.close()
        ends.append(kept(path))
    assert ends[0] == ends[1]
    replies, statements = ends[0]
    found = {row[0] for row in replies}, {row[3] for row in statements}  # type: ignore[index]
    assert found == oracle(records)


def test_everything_that_involves_a_user_goes_and_the_rest_stays(store: Experience) -> None:
    take(
        store,
        reply("a1", "ann", 1),
        reply("a2", "ann", 9),
        reply("b1", "bob", 1),
        reply("b2", "bob", 1),
        feedback("a1", key="1", time=2, user="ann", thumb=UP),
        feedback("a1", key="2", time=2, user="bob", comment="what ann was told"),
        feedback("b1", key="3", time=2, user="ann", thumb=UP),
        feedback("b1", key="4", time=2, user="bob", preferred_over="a1"),
        feedback("b1", key="5", time=2, user="bob", preferred_over="b2"),
        feedback("b1", key="6", time=2, user="bob", thumb=DOWN),
        feedback("b1", key="7", time=9, user="ann", thumb=DOWN),
        erasure("ann", 5),
    )
    assert [(vote.user, vote.liked) for vote in store.votes("quality", 100)] == [("ann", False), ("bob", False)]
    assert [pair.user for pair in store.preferences("quality", 100)] == ["bob"]
    assert len(store._db.execute("SELECT * FROM interactions").fetchall()) == 3
    assert store.unsettled
    store.settle()
    assert not store.unsettled
    take(store, erasure("ann", 5), erasure("ann", 3), reply("a1", "ann", 1))
    assert not store.unsettled, "known already"
    take(store, feedback("a2", key="8", time=10, user="ann", thumb=UP))
    assert len(store.votes("quality", 100)) == 3, "what is said after it counts again"


def test_the_file_forgets(tmp_path: Path) -> None:
    """Neither the store nor its write-ahead log has the words any more: deleted is overwritten."""
    path = tmp_path / "experience.sqlite"
    store = Experience(path, keep=100)
    words, tokens = "a secret that was told", [7_000_001, 7_000_002, 7_000_003]
    mine = reply("a1", "ann", 1)
    mine.prompt_token_ids[:] = tokens
    take(store, mine, feedback("a1", key="1", time=2, user="ann", comment=words))
    take(store, *(reply(f"b{i}", "bob", i) for i in range(50)))
    needles = [words.encode(), b"".join(token.to_bytes(4, "little") for token in tokens)]

    def found() -> list[bool]:
        content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        return [needle in content for needle in needles]

    try:
        assert found() == [True, True]
        take(store, erasure("ann", 5))
        assert store.forget()
        assert found() == [False, False]
    finally:
        store.close()


def test_what_was_learnt_from_others_is_no_matter_of_an_erasure(store: Experience) -> None:
    take(store, reply("a1", "ann", 1), reply("b1", "bob", 1), feedback("b1", key="1", time=2, user="cleo", thumb=UP))
    take(store, erasure("dan", 5))
    assert store.unsettled, "nobody knows what the rounds of an earlier release were made from"
    store.settle()
    store.learning(1)
    take(store, reply("d1", "dan", 6), erasure("dan", 7))
    assert not store.unsettled, "no round has seen it"
    assert len(store._db.execute("SELECT * FROM interactions").fetchall()) == 2
    for user in ("ann", "cleo"):  # whom it answered, and who said something
        take(store, erasure(user, 7))
        assert store.unsettled
        store.settle()
        take(store, erasure(user, 8))
        assert not store.unsettled, "what was learnt from them is gone"
    take(store, reply("a2", "ann", 9))
    store.learning(2)
    take(store, feedback("b1", key="2", time=10, user="eve", thumb=UP))
    take(store, erasure("bob", 11))
    assert store.unsettled, "his reply is in the second round's window"
    store.settle()
    store.learning(3)
    take(store, reply("x", "eve", 12))
    store.learning(4)
    take(store, erasure("ann", 13), erasure("ann", 14))
    assert store.unsettled
    store.settle()
    store.learning(5)
    take(store, erasure("ann", 15))
    assert not store.unsettled


def test_who_left_the_window_is_known_until_the_round_after_the_next(tmp_path: Path) -> None:
    """A round, and the reward model that the next one starts from, outlive the replies that they were made from."""
    store = Experience(tmp_path / "experience.sqlite", keep=1)
    take(store, reply("a1", "ann", 1))
    store.learning(1)
    take(store, reply("b1", "bob", 2))  # and the first one leaves
    store.learning(2)
    with sqlite3.connect(tmp_path / "experience.sqlite") as db:
        assert db.execute("SELECT user FROM learnt_from ORDER BY 1").fetchall() == [("ann",), ("bob",)]
    db.close()
    take(store, erasure("ann", 5))
    assert store.unsettled
    store.settle()
    take(store, reply("c1", "cleo", 6))
    store.learning(3)
    store.learning(4)
    take(store, erasure("bob", 9))
    assert not store.unsettled
    store.close()


def test_a_reader_holds_up_the_log_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "experience.sqlite"
    store = Experience(path, keep=100)
    assert store.forget()
    take(store, reply("a1", "ann", 1))
    reader = sqlite3.connect(path, isolation_level=None)
    try:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM interactions").fetchall()
        take(store, erasure("ann", 5))
        store.settle()
        assert not store.unsettled, "what was derived is dropped once"
        assert not store.forget(), "asked again later"
        assert not store.forget()
        reader.execute("ROLLBACK")
        assert store.forget()
    finally:
        reader.close()
        store.close()
