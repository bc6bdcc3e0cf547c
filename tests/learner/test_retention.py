"""The store keeps its window and no more; what has left stays counted, once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.v1.events_pb2 import Feedback, Interaction
from plaudit_learner.experience.on_trial import OnTrial
from plaudit_learner.experience.retention import _MOST_PER_REPLY, Retention, most_on_trial
from plaudit_learner.experience.store import Experience
from tests.learner.test_erasure import take
from tests.learner.test_experience import DOWN, UP, feedback, interaction


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Experience]:
    store = Experience(tmp_path / "experience.sqlite", keep=4)
    yield store
    store.close()


def ids(store: Experience) -> set[str]:
    return {row[0] for row in store._db.execute("SELECT response_id FROM interactions")}


def test_each_kind_has_its_window_and_tallies_do_not_fall(store: Experience) -> None:
    for i in range(10):
        take(
            store,
            interaction(f"r{i}", version="v1", time=i),
            feedback(f"r{i}", key="k", time=i, thumb=UP if i % 5 else DOWN),
            feedback(f"r{i}", key="p", time=i, aspect="tone", rating=3),
            feedback(f"r{i}", key="c", time=i, aspect="tone", comment="hm"),
        )
        foreign = interaction(f"i{i}", version="imported", time=i)
        take(store, foreign, feedback(f"i{i}", key="k", time=i, thumb=UP))
    assert ids(store) == {f"{kind}{i}" for kind in "ri" for i in (6, 7, 8, 9)}
    assert store._db.execute("SELECT count(*) FROM statements").fetchone() == (4 * 4,)
    tally = store.tallies("quality")["v1"]
    assert (tally.up, tally.down) == (8, 2)
    assert set(store.tallies("quality")) == {"v1"}
    assert (store.tallies("tone")["v1"].up, store.tallies("tone")["v1"].down) == (0, 0), "ratings are no thumbs"
    assert store.count_votes("quality") == 20
    assert store.count_votes("quality", "tone") == 30


def test_what_has_left_changes_nothing_when_it_comes_again(store: Experience) -> None:
    records = [
        record
        for i in range(10)
        for record in (interaction(f"r{i}", time=i), feedback(f"r{i}", key="k", time=i, thumb=UP))
    ]
    take(store, *records)
    assert store.tallies("quality")["v1"].up == 10
    take(store, *records)  # as from a log that is read anew
    take(store, feedback("r0", key="late", time=99, thumb=DOWN), feedback("r1", key="late", time=99, retraction=True))
    tally = store.tallies("quality")["v1"]
    assert (tally.up, tally.down) == (10, 0)
    assert ids(store) == {"r6", "r7", "r8", "r9"}
    take(store, feedback("r9", key="late", time=99, thumb=DOWN))
    tally = store.tallies("quality")["v1"]
    assert (tally.up, tally.down) == (9, 1), "within the window a vote may be changed"


@settings(max_examples=25)
@given(times=st.lists(st.integers(0, 9), max_size=20), seed=st.integers(0, 1000), batch=st.integers(1, 7))
def test_the_window_does_not_depend_on_the_order(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], seed: int, batch: int
) -> None:
    records = [interaction(f"r{i}", time=time) for i, time in enumerate(times)]
    shuffled = random.Random(seed).sample(records, len(records))
    store = Experience(tmp_path_factory.mktemp("retention") / "experience.sqlite", keep=4)
    store._db.execute("PRAGMA synchronous = OFF")  # power does not fail here
    try:
        for start in range(0, len(shuffled), batch):
            take(store, *shuffled[start : start + batch])
        newest = sorted(records, key=lambda record: (record.started_at.ToMicroseconds(), record.response_id))[-4:]
        assert ids(store) == {record.response_id for record in newest}
    finally:
        store.close()


TRIAL = OnTrial("v2", "v1", since=5)


def put(store: Experience, trial: OnTrial | None, *records: Interaction | Feedback) -> None:
    """As the intake does it while that is on trial."""
    with store.transaction():
        for record in records:
            store.add(record)
        store.retain(trial)


@settings(max_examples=25)
@given(times=st.lists(st.integers(0, 19), max_size=30), seed=st.integers(0, 1000), batch=st.integers(1, 7))
def test_what_is_on_trial_stays_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], seed: int, batch: int
) -> None:
    records = [interaction(f"r{i}", version=f"v{1 + i % 2}", time=time) for i, time in enumerate(times)]
    shuffled = random.Random(seed).sample(records, len(records))
    store = Experience(tmp_path_factory.mktemp("retention") / "experience.sqlite", keep=4)
    store._db.execute("PRAGMA synchronous = OFF")  # power does not fail here
    try:
        for start in range(0, len(shuffled), batch):
            put(store, TRIAL, *shuffled[start : start + batch])
        newest = sorted(records, key=lambda record: (record.started_at.ToMicroseconds(), record.response_id))[-4:]
        drawn = [record for record in records if record.started_at.ToMicroseconds() >= TRIAL.since]
        assert ids(store) == {record.response_id for record in newest + drawn}
        put(store, None)
        assert ids(store) == {record.response_id for record in newest}
    finally:
        store.close()


def test_what_leaves_after_its_trial_is_counted_once_and_does_not_come_back(store: Experience) -> None:
    records = [
        record
        for i in range(30)
        for record in (
            interaction(f"r{i}", version=("v1", "v2", "v3")[i % 3], time=i),
            feedback(f"r{i}", key="k", time=i, thumb=UP),
        )
    ]
    newest, on_trial = {"r26", "r27", "r28", "r29"}, {f"r{i}" for i in range(5, 30) if i % 3 < 2}
    # The same records each time, as from a log that is read anew.
    for trial, kept in ((TRIAL, on_trial | newest), (TRIAL, on_trial | newest), (None, newest), (TRIAL, newest)):
        put(store, trial, *records)
        assert ids(store) == kept
        tallies = store.tallies("quality")
        assert {version: tallies[version].up for version in tallies} == {"v1": 10, "v2": 10, "v3": 10}


def test_a_vote_on_what_is_on_trial_counts_however_late_it_comes(store: Experience) -> None:
    put(store, TRIAL, *(interaction(f"r{i}", version="v2", time=i) for i in range(20)))
    put(store, TRIAL, feedback("r5", key="k", time=99, thumb=UP), feedback("r4", key="k", time=99, thumb=UP))
    assert [ballot.response_id for ballot in store.ballots("quality", ("v2",), 0)] == ["r5"], "r4 came before the trial"
    asked_for = interaction("pinned", version="v2", time=6)
    asked_for.pinned = True
    put(store, TRIAL, asked_for)
    assert "pinned" not in ids(store)


def test_what_is_on_trial_is_bounded_and_the_first_stay(store: Experience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit_learner.experience.retention._MOST_ON_TRIAL", 6)
    assert (most_on_trial(4), most_on_trial(10)) == (6, 10)
    for i in range(30):
        put(store, TRIAL, interaction(f"r{i}", version=f"v{1 + i % 2}", time=i))
    assert ids(store) == {f"r{i}" for i in (5, 6, 7, 8, 9, 10, 26, 27, 28, 29)}


def test_what_waits_is_bounded_and_the_newest_wait(store: Experience) -> None:
    store._retention = Retention(store._db, window=4, waiting=20)
    take(store, interaction("here"), feedback("here", key="k", time=0, thumb=UP))
    for i in range(100):
        take(store, feedback(f"r{i}", key="k", time=i, thumb=UP))
    waiting = store._db.execute("SELECT count(*) FROM statements WHERE response_id != 'here'").fetchone()[0]
    assert 20 <= waiting <= 21
    take(store, interaction("r99"), interaction("r0"))
    assert store.count_votes("quality") == 2, "that of the oldest came too late"


def test_revisions_of_one_reply_are_bounded(store: Experience) -> None:
    take(store, interaction("r1"), feedback("r1", key="mine", time=0, user="ann", thumb=UP))
    flood = [feedback("r1", key=f"k{i}", time=i + 1, user="eve", comment="x") for i in range(_MOST_PER_REPLY + 50)]
    random.Random(0).shuffle(flood)
    take(store, *flood)
    assert store._db.execute("SELECT count(*), max(at) FROM statements").fetchone() == (
        _MOST_PER_REPLY,
        _MOST_PER_REPLY - 1,
    )
    assert store.count_votes("quality") == 1


def test_the_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten windows through it: no larger than after the second; and a file that was larger shrinks."""
    monkeypatch.setattr("plaudit_learner.experience.retention._FREE_PAGES", 16)
    path = tmp_path / "experience.sqlite"
    old = Experience(path)  # made without a bound, as by an older release

    def fill(store: Experience, first: int, last: int, size: Callable[[], int]) -> int:
        for start in range(first, last, 50):
            take(store, *(interaction(f"r{i}", prompt=range(500), time=i) for i in range(start, start + 50)))
            store.shrink()
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return size()

    def size() -> int:
        return path.stat().st_size

    large = fill(old, 0, 1000, size)
    old.close()
    store = Experience(path, keep=100)
    try:
        small = fill(store, 1000, 1200, size)
        assert small < large / 3
        assert fill(store, 1200, 2200, size) < 1.5 * small
    finally:
        store.close()
